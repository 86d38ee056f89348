"""Time calls on a machine that does other things besides: medians, and ratios of two calls that run in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Clock = Callable[[], float]
"""Gives seconds from any fixed start."""

FINE = time.get_clock_info("thread_time").resolution < 1e-5
COMPUTING: Clock = time.thread_time if FINE else time.perf_counter  # without waiting for the processor, where known
WARM_UP, PAIRED = 0.3, 2.0  # seconds in which two calls are run before, and while, they are timed in turns
BURST = 0.005  # seconds of one call at a stretch: shorter ones meet the caches that the other has filled
LEAST_PAIRS = 15


@dataclass(frozen=True)
class LatencyRatio:
    """Hold the median of many paired ratios of seconds, and their quartiles."""

    median: float
    low: float
    high: float


def timed(calls: Sequence[Callable[[], object]], rounds: int, clock: Clock) -> npt.NDArray[np.float64]:
    """Time calls: seconds [rounds, calls], one after the other in each round; a first round is not counted."""
    times = np.zeros((rounds + 1, len(calls)))
    for row in times:
        for column, call in enumerate(calls):
            start = clock()
            call()
            row[column] = clock() - start
    return times[1:]


def latency_ratio(
    small: Callable[[], object], full: Callable[[], object], clock: Clock = COMPUTING, seconds: float = PAIRED
) -> LatencyRatio:
    """Measure small / full seconds of a call.

    The two run in turns, the order changing, so that what slows the machine slows both. Each turn is a burst of calls,
    the first of which is not counted: it finds the other's weights in the cache. With `COMPUTING`, and calls that
    compute on this thread, time in which others had the processor does not count.
    """
    calls, began = (small, full), clock()
    alone = timed(calls, 1, clock)
    while clock() - began < WARM_UP:
        alone = timed(calls, 1, clock)
    repeats = np.maximum(BURST // np.maximum(alone[0], 1e-9), 1).astype(int)
    ratios: list[float] = []
    began = clock()
    while len(ratios) < LEAST_PAIRS or clock() - began < seconds:
        order = (0, 1) if len(ratios) % 2 else (1, 0)
        spent = {place: _burst(calls[place], int(repeats[place]), clock) for place in order}
        ratios.append(spent[0] / spent[1])
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
