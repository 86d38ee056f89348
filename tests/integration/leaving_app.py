"""The simulated phones as a Flower app, of which two more are gone from each step of every masked sum on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flwr.app import Context

from fedcaptor.client.app import make_app
from fedcaptor.client.phone import Phone
from fedcaptor.simulations import flower_app

LEAVING = 2
"""Phones that are gone from step s on: numbers 2s and 2s + 1."""


@dataclass
class Leaving:
    """A phone that answers everything else."""

    phone: Phone
    number: int

    def masked(self, request: Any, tensors: Any) -> Any:
        if request.step >= self.number // LEAVING:
            raise ConnectionError("gone")
        return self.phone.masked(request, tensors)

    def deliver(self, request: Any, tensors: Any) -> Any:
        return self.phone.deliver(request, tensors)


def phone_of(context: Context) -> Any:
    return Leaving(flower_app.phone_of(context), int(context.node_config["partition-id"]))


client_app = make_app(phone_of)
