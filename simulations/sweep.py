"""One scenario under several seeds: what each figure is on average, and how sure that is."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import t as student

from fedcaptor.common.errors import ConfigError

MAX_SEEDS = 1000
CONFIDENCE = 0.95
_NO_FIGURES = frozenset({"seed"})

_PART = re.compile(r"(\d{1,9})(?:\.\.(\d{1,9}))?")


@dataclass(frozen=True)
class Metric:
    """A figure over the seeds, in the order of these; None in `values` where a run lacks it.

    `mean`, `std` (of the sample, n − 1) and the Student-t interval [`low`, `high`] of the mean at `CONFIDENCE` are
    over the values that exist; the spread of fewer than two is unknown.
    """

    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    values: tuple[float | None, ...]


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0..4`, `0,3,7` or both, such as `0..2,7`. Raises ConfigError."""
    seeds: list[int] = []
    for part in text.split(","):
        found = _PART.fullmatch(part.strip())
        if found is None:
            raise ConfigError(f"seeds are {text!r}, {part.strip()!r} is no seed: give for example 0..4 or 0,3,7")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ConfigError(f"seeds are {text!r}, {part.strip()} runs backwards: write {last}..{first}")
        if last - first >= MAX_SEEDS - len(seeds):
            raise ConfigError(f"seeds are {text!r}, more than {MAX_SEEDS}: give fewer")
        seeds += range(first, last + 1)
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ConfigError(f"seeds are {text!r}, {twice[0]} is there twice: name each once")
    return tuple(seeds)


def metric(values: Sequence[float | None]) -> Metric:
    """Mean, spread and interval of one figure."""
    known = [value for value in values if value is not None]
    if not known:
        return Metric(None, None, None, None, tuple(values))
    mean = statistics.mean(known)  # exact, as the next: equal values have no spread
    if len(known) == 1:
        return Metric(mean, None, None, None, tuple(values))
    std = statistics.stdev(known)
    half = float(student.ppf((1 + CONFIDENCE) / 2, len(known) - 1)) * std / math.sqrt(len(known))
    return Metric(mean, std, mean - half, mean + half, tuple(values))


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


def sweep_of(summaries: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """`sweep.json` from the runs' summaries by seed."""
    first = next(iter(summaries.values()))
    metrics = aggregate(summaries)
    return {
        "model": first["model"],
        "data": first["data"],
        "seeds": list(summaries),
        "confidence": CONFIDENCE,
        "metrics": {name: asdict(found) | {"values": list(found.values)} for name, found in metrics.items()},
        "marks": list(dict.fromkeys(mark for summary in summaries.values() for mark in summary["marks"])),
    }
