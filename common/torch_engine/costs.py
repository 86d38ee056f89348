"""The cost model of a network: every convolution and linear layer with the groups that it reads and makes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fedcaptor.common.groups import Group, Layer
from fedcaptor.common.torch_engine.network import is_depthwise, is_grouped, mixes


def layers_of(network: nn.Module, positions: Mapping[str, int], groups: Sequence[Group]) -> tuple[Layer, ...]:
    """List the layers with their costs in the order of `positions` (output map positions by layer, as executed).

    A layer behind a concatenation has one entry for each group that it reads.
    """
    read: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    made: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for group in groups:
        for consumer in group.consumers:
            read[consumer.layer].append((group.name, group.channels, consumer.taps))
        for place in group.slices:
            layer, _, attribute = place.tensor.rpartition(".")
            if place.dim == 0 and attribute == "weight":
                made[layer].append((group.name, group.channels, place.taps))
    modules = dict(network.named_modules())
    layers = []
    for name, pixels in positions.items():
        module: Any = modules[name]
        if is_depthwise(module) or is_grouped(module):
            layers += _carrying(name, pixels, module, made[name])
        elif mixes(module):
            layers += _mixing(name, pixels, module, read[name], made[name])
    return tuple(layers)


def _carrying(name: str, positions: int, module: Any, made: list[tuple[str, int, int]]) -> list[Layer]:
    """Describe a depthwise or grouped convolution: one entry for each group that it carries."""
    kernel = math.prod(module.weight.shape[1:])
    fixed = module.out_channels - sum(channels * taps for _, channels, taps in made)
    parts: list[tuple[str | None, int, int]] = [*made, *([(None, fixed, 1)] if fixed else [])]
    return [
        Layer(name, positions, kernel, channels, channels, group, group, True, out_taps=taps)
        for group, channels, taps in parts
    ]


def _mixing(
    name: str, positions: int, module: Any, read: list[tuple[str, int, int]], made: list[tuple[str, int, int]]
) -> list[Layer]:
    """Describe a convolution or linear layer: one entry for each group that it reads."""
    linear = isinstance(module, nn.Linear)
    kernel = 1 if linear else math.prod(module.kernel_size)
    outputs, inputs = module.weight.shape[:2]
    fixed = inputs - sum(channels * taps for _, channels, taps in read)
    parts: list[tuple[str | None, int, int]] = [*read, *([(None, fixed, 1)] if fixed else [])]
    target, made_channels, out_taps = made[0] if made else (None, outputs, 1)
    return [
        Layer(name, positions, kernel, channels, made_channels, group, target, False, taps, out_taps)
        for group, channels, taps in parts
    ]
