"""A training's state after an epoch, in one file: tensors as safetensors, everything else as JSON in its header."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from fedcaptor.common.errors import StateError
from fedcaptor.common.files import replacing

Tensors = dict[str, torch.Tensor]


@dataclass
class Training:
    """What goes on from epoch to epoch.

    `epoch`: epochs that are finished. `best`: the network's tensors after the epoch `best_epoch`, which had the highest
    `best_accuracy` on validation images; empty before the first.
    """

    network: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.OneCycleLR
    rng: np.random.Generator
    epoch: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best: Tensors = field(default_factory=dict)

    def finish_epoch(self, accuracy: float) -> None:
        """Count an epoch, with its accuracy on validation images."""
        self.epoch += 1
        if accuracy > self.best_accuracy:
            self.best_epoch, self.best_accuracy = self.epoch, accuracy
            self.best = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    def save(self, path: Path, settings: dict[str, Any]) -> None:
        """Write all of it, random states too; the file is whole at any moment. `settings`: what the result rests on."""
        optimiser = self.optimiser.state_dict()
        moments = {
            f"{number}.{name}": value for number, own in optimiser["state"].items() for name, value in own.items()
        }
        tensors = {
            **_named("network", self.network.state_dict()),
            **_named("best", self.best),
            **_named("optimiser", moments),
            "torch": torch.get_rng_state(),
        }
        numbers = {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_accuracy": self.best_accuracy,
            "rng": self.rng.bit_generator.state,
            "optimiser": optimiser["param_groups"],
            "schedule": self.schedule.last_epoch,
        }
        header = {"settings": json.dumps(settings), "numbers": json.dumps(numbers)}
        with replacing(path) as temporary:
            temporary.write_bytes(save(tensors, header))

    def resume(self, path: Path, settings: dict[str, Any]) -> None:
        """Take on the state in a file. Raises StateError when it is damaged or of other settings."""
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
            stored, numbers = json.loads(header["settings"]), json.loads(header["numbers"])
            if stored == settings:
                self._take(tensors, numbers)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise StateError(f"{path} cannot be gone on from ({error}): start anew with --fresh") from error
        if stored != settings:
            name = next(name for name in settings if stored.get(name) != settings[name])
            raise StateError(
                f"{path} is of another training, {name} is {stored.get(name)} there and {settings[name]} here: start "
                "anew with --fresh, or choose another --out"
            )

    def _take(self, tensors: Tensors, numbers: dict[str, Any]) -> None:
        self.network.load_state_dict(_part("network", tensors))
        self.best = _part("best", tensors)
        moments: dict[int, Tensors] = {}
        for key, tensor in _part("optimiser", tensors).items():
            number, _, name = key.partition(".")
            moments.setdefault(int(number), {})[name] = tensor
        self.optimiser.load_state_dict({"state": moments, "param_groups": numbers["optimiser"]})
        self.schedule.last_epoch = numbers["schedule"]
        self.rng.bit_generator.state = numbers["rng"]
        torch.set_rng_state(tensors["torch"])
        self.epoch, self.best_epoch = numbers["epoch"], numbers["best_epoch"]
        self.best_accuracy = numbers["best_accuracy"]


def _named(prefix: str, tensors: Tensors) -> Tensors:
    """Copies, since tensors of a network may share their memory, under names with a prefix."""
    return {f"{prefix}.{name}": tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def _part(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}
