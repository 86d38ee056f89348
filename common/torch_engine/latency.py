"""Measure latency on this machine: of whole networks, and of single layers over a grid of channel counts."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedcaptor.common.costs import Dimension, layer_lengths
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.latency import LatencyTable, LayerTimes, monotone
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.evidence import hooks
from fedcaptor.common.torch_engine.network import network

Clock = Callable[[], float]
"""Gives seconds from any fixed start."""

RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a layer's inputs and outputs; 0 stands for the smallest count
POINT_SECONDS, LEAST_ROUNDS, MOST_ROUNDS = 0.02, 5, 30  # for one grid point
FINE = time.get_clock_info("thread_time").resolution < 1e-5
COMPUTING: Clock = time.thread_time if FINE else time.perf_counter  # without waiting for the processor, where known
PASSES = 15  # through the whole network
WARM_UP, PAIRED = 0.3, 2.0  # seconds in which two networks are run before, and while, they are timed in turns
BURST = 0.005  # seconds of one network at a stretch: shorter ones meet the caches that the other has filled
LEAST_PAIRS = 15


@dataclass(frozen=True)
class LatencyRatio:
    """Hold the median of many paired ratios of seconds, and their quartiles."""

    median: float
    low: float
    high: float


def measure(module: nn.Module, shape: tuple[int, int, int], clock: Clock = time.perf_counter) -> float:
    """Measure the median seconds of one image of `shape` (C, H, W) through `module` on one thread."""
    call = partial(module, _ones((1, *shape)))
    with one_thread():
        rounds = int(1 / max(_timed([call], 1, clock).item(), 1e-9))
        return float(np.median(_timed([call], min(max(rounds, 15), 100), clock)))


@torch.no_grad()
def measured_latency_ratio(
    small: nn.Module, full: nn.Module, shape: tuple[int, int, int], clock: Clock = COMPUTING
) -> LatencyRatio:
    """Measure small / full seconds of one image of `shape` (C, H, W), on one thread, for about two seconds.

    The networks run in turns, the order changing, so that what slows the machine slows both. Each turn is a burst of
    images, the first of which is not counted: it finds the other network's weights in the cache. Time in which others
    had the processor does not count.
    """
    calls = [partial(module, _ones((1, *shape))) for module in (small, full)]
    with one_thread():
        began = clock()
        alone = _timed(calls, 1, clock)
        while clock() - began < WARM_UP:
            alone = _timed(calls, 1, clock)
        repeats = np.maximum(BURST // np.maximum(alone[0], 1e-9), 1).astype(int)
        ratios: list[float] = []
        began = clock()
        while len(ratios) < LEAST_PAIRS or clock() - began < PAIRED:
            order = (0, 1) if len(ratios) % 2 else (1, 0)
            seconds = {place: _burst(calls[place], int(repeats[place]), clock) for place in order}
            ratios.append(seconds[0] / seconds[1])
    low, median, high = np.percentile(ratios, (25, 50, 75)).tolist()
    return LatencyRatio(median, low, high)


def _burst(call: Callable[[], object], repeats: int, clock: Clock) -> float:
    """Measure the mean seconds of `repeats` calls in a row, after one that is not counted where they are short."""
    if repeats > 1:
        call()
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


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
            rows, columns, real = _grid(inputs, groups, multiple), _grid(outputs, groups, multiple), inside[name]
            alone = [
                [_seconds(_layer(base, blank[name], name, i, j), real.reads, clock) for j in columns] for i in rows
            ]
            times = monotone(alone) * (real.seconds / alone[-1][-1]) + real.after * np.array(columns) / columns[-1]
            found[name] = LayerTimes(rows, columns, tuple(map(tuple, monotone(times).tolist())))
            if on_layer is not None:
                on_layer(done, len(lengths))
    return LatencyTable(base.name, groups.input_shape, groups.digest, _machine(), 1, found, rest)


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


def _grid(dimension: Dimension, groups: ChannelGroups, multiple: int) -> tuple[int, ...]:
    """List counts from the smallest that a plan can keep up to all, in multiples; a single one where none can go."""
    fixed, parts = dimension
    free = sum(taps * groups.by_name[name].channels for name, taps in parts)
    if not free:
        return (fixed,)
    channels = 1 if parts[0][0] == groups.output.name else multiple
    unit = max(taps * groups.by_name[name].step(channels) for name, taps in parts)
    counts = {min(unit * max(round(ratio * free / unit), 1), free) for ratio in RATIOS} | {free}
    return tuple(fixed + count for count in sorted(counts))


def _layer(base: BaseModel, blank: nn.Module, name: str, inputs: int, outputs: int) -> nn.Module:
    """Build the layer with its first `inputs` inputs and `outputs` outputs."""
    own = {key: base.state[f"{name}.{key}"][:outputs] for key, _ in blank.named_parameters()}
    weight = own["weight"] if getattr(blank, "groups", 1) > 1 else own["weight"][:, :inputs]
    return network(copy.deepcopy(blank), own | {"weight": weight})


def _seconds(layer: Any, shape: tuple[int, ...], clock: Clock) -> float:
    """Measure the median seconds of one layer; more repetitions where they take less."""
    linear = isinstance(layer, nn.Linear)
    x = torch.ones(*shape[:-1], layer.in_features) if linear else _ones((shape[0], layer.in_channels, *shape[2:]))
    first = _timed([partial(layer, x)], 1, clock).item()
    rounds = min(max(int(POINT_SECONDS / first), LEAST_ROUNDS), MOST_ROUNDS) if first > 0 else MOST_ROUNDS
    return float(np.median(_timed([partial(layer, x)], rounds, clock)))


@torch.no_grad()
def _timed(calls: Sequence[Callable[[], object]], rounds: int, clock: Clock) -> npt.NDArray[np.float64]:
    """Time calls: seconds [rounds, calls], one after the other in each round; a first round is not counted."""
    times = np.zeros((rounds + 1, len(calls)))
    for row in times:
        for column, call in enumerate(calls):
            start = clock()
            call()
            row[column] = clock() - start
    return times[1:]


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
