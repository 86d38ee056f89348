"""Teach a submodel (knowledge distillation): augmented views, the full model's answers to them, its deep channels."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.observations import consuming_layers
from fedcaptor.common.slicer import kept_elements
from fedcaptor.common.torch_engine.base import Submodel
from fedcaptor.common.torch_engine.evidence import hooks
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.torch_engine.network import channels_first

VIEWS = 4096  # kept at one time: few images have many, of many images a part has one
VIEWS_PER_IMAGE = 16  # at most
RENEWED = 0.25  # share of batches that show views never seen before: without, those kept are memorised
VALUES = 16384  # deep channels' values that are kept of each view: of all views 134 MB at most

Channels = dict[str, torch.Tensor]
"""Channels [n, C, …] at the input of layers, by layer."""


class Teacher:
    """Give training examples, computed when first asked for, then kept and at times renewed.

    The full model's forward passes thereby stay a small part of the time.

    A view is mirrored at random and moved by up to an eighth of the sides (4 of 32 pixels); with `augment` false it is
    the image itself. The full model sees the very view that is learnt: teaching a shifted image the answer of the
    original was measurably worse, and so were originals, which the full model may have memorised. A kept channel should
    carry what the full model's carries (Romero et al. 2015): with few steps that is worth more than answers alone. Deep
    layers first, where maps are small.
    """

    def __init__(self, submodel: Submodel, images: Images, augment: bool, rng: np.random.Generator) -> None:
        self.base, self.classes = submodel.base, torch.from_numpy(submodel.classes)
        self.module = copy.deepcopy(self.base.module).to(memory_format=torch.channels_last)  # a third faster
        self.images, self.augment, self.rng = images, augment, rng
        count = min(VIEWS, len(images) * (VIEWS_PER_IMAGE if augment else 1))
        self.shown = np.resize(rng.permutation(len(images)), count)
        self.moves, self.mirrored = np.zeros((count, 2), dtype=np.int64), np.zeros(count, dtype=bool)
        self.answers = torch.full((count, len(self.classes)), math.nan)
        self._kept = _deep_channels(submodel, normalise(images[:1], self.base.mean, self.base.std))
        self._channels: Channels = {}

    def __len__(self) -> int:
        return len(self.shown)

    @property
    def layers(self) -> list[str]:
        """List the layers at whose input channels are taught."""
        return list(self._kept)

    @torch.no_grad()
    def examples(self, part: Indices) -> tuple[torch.Tensor, torch.Tensor, Channels]:
        """Return the examples numbered `part` [n]: views, normalised [n, C, H, W], answers [n, k], channels."""
        fresh = self.answers[part].isnan().any(1).numpy()
        if self.augment and self.rng.random() < RENEWED:  # all at once: images cost the full model less in a batch
            fresh[:] = True
            self.shown[part] = self.rng.integers(len(self.images), size=len(part))
        new = part[fresh]
        if self.augment:
            most = np.array(self.images.shape[1:3]) // 8
            self.moves[new] = self.rng.integers(-most, most + 1, size=(len(new), 2))
            self.mirrored[new] = self.rng.integers(2, size=len(new)).astype(bool)
        x = normalise(self.images[self.shown[part]], self.base.mean, self.base.std)
        x = shifted(x, self.moves[part], self.mirrored[part])
        if len(new):
            self._compute(x[fresh], new)
        return x, self.answers[part], {layer: kept[part].float() for layer, kept in self._channels.items()}

    def _compute(self, x: torch.Tensor, part: Indices) -> None:
        """Ask the full model for answers and channels of views `x`, and keep them as examples `part`."""
        with inputs_of(self.module, self.layers) as seen, half_precision():
            self.answers[part] = self.module(x)[:, self.classes].float()
        for layer, kept in self._kept.items():
            values = seen[layer][:, kept]
            if layer not in self._channels:  # half the memory, and the range of single precision
                self._channels[layer] = torch.zeros((len(self), *values.shape[1:]), dtype=torch.bfloat16)
            self._channels[layer][part] = values.bfloat16()


def half_precision() -> torch.autocast:
    """Run forward passes in bfloat16 where the processor multiplies in it: three times the steps in the same time."""
    known = torch.cpu.get_capabilities()
    return torch.autocast("cpu", torch.bfloat16, enabled=any(known.get(f"{unit}_bf16") for unit in ("avx512", "amx")))


@contextlib.contextmanager
def inputs_of(model: nn.Module, layers: Sequence[str]) -> Iterator[Channels]:
    """Record the inputs [N, C, …] of these layers, by name, for the last images that the model saw inside the block."""
    modules = dict(model.named_modules())
    found: Channels = {}

    def watch(layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            found[layer] = channels_first(inputs[0], module)

        return hook

    with hooks([modules[layer].register_forward_pre_hook(watch(layer)) for layer in layers]):
        yield found


@torch.no_grad()
def _deep_channels(submodel: Submodel, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Choose the full model's channels that the submodel's layers read, from the last layer back while they fit."""
    groups = submodel.base.groups
    kept, layers = kept_elements(groups, submodel.plan), consuming_layers(groups)
    with inputs_of(submodel.base.module, layers) as seen:
        submodel.base.module(x)
    chosen, room = {}, VALUES
    for layer in reversed(layers):
        every = np.arange(seen[layer].shape[1])
        elements = kept.get((f"{layer}.weight", 1), every)
        room -= len(elements) * math.prod(seen[layer].shape[2:])
        if room < 0:
            break
        chosen[layer] = torch.from_numpy(elements)
    return chosen


def shifted(x: torch.Tensor, moves: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_]) -> torch.Tensor:
    """Mirror images [n, C, H, W] left to right where told, then shift them by `moves` [n, 2] pixels down and right.

    The mean colour fills in.
    """
    height, width = x.shape[2:]
    reach = int(np.abs(moves).max(initial=0))
    rows = np.arange(height) + reach - moves[:, :1]
    columns = np.arange(width) + reach - moves[:, 1:]
    x = torch.where(torch.from_numpy(mirrored).view(-1, 1, 1, 1), x.flip(3), x)
    image = np.arange(len(x))[:, None, None]
    return F.pad(x, (reach,) * 4)[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
