"""Measure latency on this machine: of whole networks, and of single layers over a grid of channel counts."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from fedcaptor.common.costs import layer_lengths, measured_counts
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.latency import TORCH, LatencyTable, LayerTimes, monotone
from fedcaptor.common.timing import COMPUTING, Clock, LatencyRatio, latency_ratio, timed
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.evidence import hooks
from fedcaptor.common.torch_engine.network import network

POINT_SECONDS, LEAST_ROUNDS, MOST_ROUNDS = 0.02, 5, 30  # for one grid point
PASSES = 15  # through the whole network


@torch.no_grad()
def measure(module: nn.Module, shape: tuple[int, int, int], clock: Clock = time.perf_counter) -> float:
    """Measure the median seconds of one image of `shape` (C, H, W) through `module` on one thread."""
    call = partial(module, _ones((1, *shape)))
    with one_thread():
        rounds = int(1 / max(timed([call], 1, clock).item(), 1e-9))
        return float(np.median(timed([call], min(max(rounds, 15), 100), clock)))


@torch.no_grad()
def measured_latency_ratio(
    small: nn.Module, full: nn.Module, shape: tuple[int, int, int], clock: Clock = COMPUTING
) -> LatencyRatio:
    """Measure small / full seconds of one image of `shape` (C, H, W), on one thread, for about two seconds.

    The networks run in turns, so that what slows the machine slows both (`common/timing.py`).
    """
    one, other = (partial(module, _ones((1, *shape))) for module in (small, full))
    with one_thread():
        return latency_ratio(one, other, clock)


def measure_table(
    base: BaseModel,
    multiple: int = 8,
    on_layer: Callable[[int, int], None] | None = None,
    clock: Clock = time.perf_counter,
) -> LatencyTable:
    """Measure each convolution and linear layer alone, on one thread and one image, at the size of its real input map.

    A layer alone finds its weights in the cache: its times are scaled to what it takes inside the full network. What
    follows it there (norms, activations, pooling) is added, in proportion to its outputs; `rest` is what comes before
    the first layer.

    Args:
        base: The full model.
        multiple: Channel counts of the grid are multiples of it.
        on_layer: Called with the layers done and their number.
        clock: Gives seconds.
    """
    groups, found = base.groups, {}
    lengths = layer_lengths(groups)
    blank = dict(base.skeleton().named_modules())
    with one_thread():
        inside, rest = _inside(base.module, groups, clock)
        for done, (name, (inputs, outputs)) in enumerate(lengths.items(), 1):
            rows, columns = (measured_counts(length, groups, multiple) for length in (inputs, outputs))
            real = inside[name]
            alone = [
                [_seconds(_layer(base, blank[name], name, i, j), real.reads, clock) for j in columns] for i in rows
            ]
            times = monotone(alone) * (real.seconds / alone[-1][-1]) + real.after * np.array(columns) / columns[-1]
            found[name] = LayerTimes(rows, columns, tuple(map(tuple, monotone(times).tolist())))
            if on_layer is not None:
                on_layer(done, len(lengths))
    return LatencyTable(base.name, groups.input_shape, groups.digest, TORCH, _machine(), 1, found, rest)


def layer_seconds(module: nn.Module, groups: ChannelGroups, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Measure the median seconds of one image in each layer, on one thread, with what follows it until the next layer.

    The time before the first layer is in none of them.
    """
    with one_thread():
        inside, _ = _inside(module, groups, clock)
    return {name: layer.seconds + layer.after for name, layer in inside.items()}


@dataclass(frozen=True)
class _Context:
    """Hold a layer's timing inside the full network: shape that it reads, its seconds, those until the next begins."""

    reads: tuple[int, ...]
    seconds: float
    after: float


@torch.no_grad()
def _inside(module: nn.Module, groups: ChannelGroups, clock: Clock) -> tuple[dict[str, _Context], float]:
    """Time all layers inside the network for one image (medians), and the seconds before the first of them."""
    shapes: dict[str, tuple[int, ...]] = {}
    stamps: list[float] = []

    def begins(name: str, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        shapes[name] = tuple(inputs[0].shape)
        stamps.append(clock())

    def ends(*_: object) -> None:
        stamps.append(clock())

    layers = [(name, layer) for name, layer in module.named_modules() if name in {own.name for own in groups.layers}]
    handles = [layer.register_forward_pre_hook(partial(begins, name)) for name, layer in layers]
    handles += [layer.register_forward_hook(ends) for _, layer in layers]
    x, rounds = _ones((1, *groups.input_shape)), []
    with hooks(handles):
        for _ in range(PASSES + 1):
            stamps[:] = [clock()]
            module(x)
            rounds.append(np.diff([*stamps, clock()]))
    before, *spans = np.median(rounds[1:], axis=0).tolist()
    pairs = zip(shapes.items(), spans[::2], spans[1::2], strict=True)  # shapes: in the order of execution
    return {name: _Context(reads, seconds, after) for (name, reads), seconds, after in pairs}, before


def _layer(base: BaseModel, blank: nn.Module, name: str, inputs: int, outputs: int) -> nn.Module:
    """Build the layer with its first `inputs` inputs and `outputs` outputs."""
    own = {key: base.state[f"{name}.{key}"][:outputs] for key, _ in blank.named_parameters()}
    weight = own["weight"] if getattr(blank, "groups", 1) > 1 else own["weight"][:, :inputs]
    return network(copy.deepcopy(blank), own | {"weight": weight})


@torch.no_grad()
def _seconds(layer: Any, shape: tuple[int, ...], clock: Clock) -> float:
    """Measure the median seconds of one layer; more repetitions where they take less."""
    linear = isinstance(layer, nn.Linear)
    x = torch.ones(*shape[:-1], layer.in_features) if linear else _ones((shape[0], layer.in_channels, *shape[2:]))
    first = timed([partial(layer, x)], 1, clock).item()
    rounds = min(max(int(POINT_SECONDS / first), LEAST_ROUNDS), MOST_ROUNDS) if first > 0 else MOST_ROUNDS
    return float(np.median(timed([partial(layer, x)], rounds, clock)))


def _ones(shape: tuple[int, ...]) -> torch.Tensor:
    """Make an input in the memory layout of `normalise`."""
    x = torch.ones(shape)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _machine() -> str:
    """Describe processor and torch in words."""
    processor = platform.processor() or platform.machine()
    return f"{processor}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
