"""Flower's view of a phone: messages in, messages out. All that is decided is decided in `client.phone`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.images import FolderFeed, MappedFeed
from client.ledger import DECLINED
from client.phone import Phone
from common.config import Config, load_config
from common.errors import ConfigError, PrivacyError, WireError
from common.messages import (
    DeliverReply,
    DeliverRequest,
    LocalReply,
    LocalRequest,
    MaskedReply,
    MaskedRequest,
    SumReply,
    SumRequest,
)
from common.tiers import as_tier, drawn
from common.torch_engine.base import BaseModel
from common.wire import pack, unpack

logger = logging.getLogger(__name__)

PhoneOf = Callable[[Context], Phone]
Handler = Callable[[Message, Context], Message]


def make_app(phone_of: PhoneOf) -> ClientApp:
    """A ClientApp whose phones come from `phone_of`."""
    app = ClientApp()

    @app.query("sum")
    @_tells_nothing
    def add(message: Message, context: Context) -> Message:
        request, tensors = unpack(message.content, SumRequest)
        values = phone_of(context).answer(request, tensors)
        return Message(pack(SumReply.to(request), {"values": values}), reply_to=message)

    @app.query("masked")
    @_tells_nothing
    def add_masked(message: Message, context: Context) -> Message:
        request, tensors = unpack(message.content, MaskedRequest)
        secure = phone_of(context).masked(request, tensors)
        return Message(pack(MaskedReply.to(request), {"secure": secure}), reply_to=message)

    @app.query("local")
    @_tells_nothing
    def answer_alone(message: Message, context: Context) -> Message:
        request, _ = unpack(message.content, LocalRequest)
        answer = phone_of(context).local(request)
        return Message(pack(LocalReply.to(request), {"answer": answer}), reply_to=message)

    @app.query("deliver")
    @_tells_nothing
    def deliver(message: Message, context: Context) -> Message:
        request, tensors = unpack(message.content, DeliverRequest)
        cluster, accepted = None, True
        try:
            cluster = phone_of(context).deliver(request, tensors)
        except WireError as error:
            logger.warning("delivery refused: %s", error.reason)
            accepted = False
        reply = DeliverReply(
            run=request.run, round=request.round, request=request.request, accepted=accepted, cluster=cluster
        )
        return Message(pack(reply, {}), reply_to=message)

    return app


def _tells_nothing(handler: Handler) -> Handler:
    """Flower sends an exception's text to the server: it gets one word, whether the owner's budget is spent, a photo
    cannot be read or the disk is full. Why stays in the phone's own log.
    """

    def answer(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except Exception as error:
            logger.warning("not answered: %r", error)
        raise PrivacyError(DECLINED)

    return answer


@lru_cache(maxsize=2)
def load_base(weights: Path, name: str, input_shape: tuple[int, int, int]) -> BaseModel:
    """The base model, loaded once a process."""
    torch.set_num_threads(1)  # results do not depend on the machine's cores, and phones run side by side
    return BaseModel.load(weights, name, input_shape)


_thread = threading.local()


def _of_this_thread(base: BaseModel) -> BaseModel:
    """The same base model with a network of the calling thread's own: hooks live on it, phones answer side by side."""
    if getattr(_thread, "origin", None) is not base:
        torch.set_num_threads(1)  # holds for the calling thread
        _thread.origin, _thread.own = base, replace(base, module=base.rebuild(base.state))
    own: BaseModel = _thread.own
    return own


def simulated_phone(directory: Path, config: Config, base: BaseModel, number: int) -> Phone:
    """Phone `number` (`partition-id`) of a simulated population in `directory`."""
    feed = MappedFeed(directory / "population", number)
    folder = directory / "phones" / f"{number:06d}"
    tier = drawn(config, number)
    config = config if tier is None else as_tier(config, tier.name)
    return Phone(folder, _of_this_thread(base), feed, config, seed=(config.run.seed, number), durable=False)


def device_phone(context: Context) -> Phone:
    """A real device: everything from its node configuration; noise from the operating system's generator.

    `folder`: the phone's own storage; `images`: its images; `weights`, `model`, `input-shape` ("1x28x28"): the base
    model; `config`: TOML with what the phone insists on. Paths are absolute. `tier`: its device tier, where there are
    tiers and `personal.tier` does not give it.
    """
    node = {key: str(value) for key, value in context.node_config.items()}
    for key in ("folder", "images", "weights", "model", "config", "input-shape"):
        if not node.get(key):
            raise ConfigError(f"node configuration lacks {key!r}: start the node with --node-config '{key}=\"…\"'")
    shape = node["input-shape"].split("x")
    if len(shape) != 3 or not all(n.isdecimal() for n in shape):
        raise ConfigError(f'input-shape is {node["input-shape"]!r}, must be channels, height and width: "1x28x28"')
    base = load_base(Path(node["weights"]), node["model"], (int(shape[0]), int(shape[1]), int(shape[2])))
    config = load_config(Path(node["config"]))
    if config.privacy.sums == "plain":
        raise ConfigError('privacy.sums is "plain", real phones mask theirs: set it to "masked", or to "local"')
    if config.tiers and not (node.get("tier") or config.personal.tier):
        names = ", ".join(tier.name for tier in config.tiers)
        raise ConfigError(f"the phone's tier is not given: start the node with --node-config 'tier=\"…\"', of {names}")
    config = as_tier(config, node["tier"]) if node.get("tier") else config
    return Phone(Path(node["folder"]), base, FolderFeed(Path(node["images"])), config)


app = make_app(device_phone)
