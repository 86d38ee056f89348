"""One scenario under several seeds: what each figure is on average, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scipy.stats import t as student

from fedcaptor.simulations.records import Metric, Sweep

CONFIDENCE = 0.95
_NO_FIGURES = frozenset({"seed"})


def half_width(deviation: float, count: int, confidence: float = CONFIDENCE) -> float:
    """Half of the Student-t interval of a mean, from the sample's standard deviation over `count` ≥ 2 values."""
    return float(student.ppf((1 + confidence) / 2, count - 1)) * deviation / math.sqrt(count)


def metric(values: Sequence[float | None]) -> Metric:
    """Mean, spread and interval of one figure."""
    known = [value for value in values if value is not None]
    mean = statistics.mean(known) if known else None  # exact, as the next: equal values have no spread
    if mean is None or len(known) == 1:
        return Metric(mean=mean, std=None, low=None, high=None, values=tuple(values))
    std = statistics.stdev(known)
    half = half_width(std, len(known))
    return Metric(mean=mean, std=std, low=mean - half, high=mean + half, values=tuple(values))


def figures(summary: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """Numeric leaves of a summary by dotted name, None and numbers that are not finite as None; no truth values."""
    for key, value in summary.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from figures(value, f"{name}.")
        elif name in _NO_FIGURES or isinstance(value, bool):
            continue
        elif value is None:
            yield name, None
        elif isinstance(value, int | float):
            yield name, float(value) if math.isfinite(value) else None


def aggregate(summaries: Mapping[int, Mapping[str, Any]]) -> dict[str, Metric]:
    """Every figure over the seeds, by dotted name; one that no run has as a number is left out."""
    by_seed = [dict(figures(summary)) for summary in summaries.values()]
    names = dict.fromkeys(name for found in by_seed for name in found)
    metrics = {name: metric([found.get(name) for found in by_seed]) for name in names}
    return {name: found for name, found in metrics.items() if found.mean is not None}


def sweep_of(summaries: Mapping[int, Mapping[str, Any]]) -> Sweep:
    """The record of a sweep from the summaries of its runs by seed."""
    first = next(iter(summaries.values()))
    return Sweep(
        model=first["model"],
        data=first["data"],
        seeds=tuple(summaries),
        confidence=CONFIDENCE,
        metrics=aggregate(summaries),
        marks=tuple(dict.fromkeys(mark for summary in summaries.values() for mark in summary["marks"])),
    )
