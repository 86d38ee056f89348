"""One scenario under several seeds: what each figure is on average, and how sure that is."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scipy.special import expit, logit
from scipy.stats import t as student

from fedcaptor.simulations.records import Metric, Provenance, Sweep

CONFIDENCE = 0.95
WITHIN_ONE = re.compile(r"(cluster_only\.)?(accuracy.*|macs_ratio|parameters_ratio|energy_ratio)|out_of_set\..*")
"""Names of figures that lie in [0, 1]. The others are only known to be no less than 0."""
_NO_FIGURES = frozenset({"seed"})


def half_width(deviation: float, count: int, confidence: float = CONFIDENCE) -> float:
    """Half of the Student-t interval of a mean, from the sample's standard deviation over `count` ≥ 2 values."""
    return float(student.ppf((1 + confidence) / 2, count - 1)) * deviation / math.sqrt(count)


def interval(mean: float, half: float, within_one: bool) -> tuple[float, float]:
    """Bounds of a mean's interval that cannot leave the figure's range, from the half width of its t-interval.

    That is carried over by the derivative to the logit, for a figure within [0, 1], or to the logarithm, for others
    above 0, and the bounds are carried back: "logit" intervals of survey statistics (Korn & Graubard, Analysis of
    Health Surveys, Wiley 1999; `svyciprop` of R's package survey). The mean lies between the ends of its range.
    """
    if within_one:
        centre, reach = logit(mean), half / (mean * (1 - mean))
        return float(expit(centre - reach)), float(expit(centre + reach))
    factor = math.exp(half / mean)
    return mean / factor, mean * factor


def metric(values: Sequence[float | None], within_one: bool = False) -> Metric:
    """Mean, spread and interval of one figure; `within_one`: it lies in [0, 1]."""
    known = [value for value in values if value is not None]
    mean = statistics.mean(known) if known else None  # exact, as the next: equal values have no spread
    if mean is None or len(known) == 1:
        return Metric(mean=mean, std=None, low=None, high=None, values=tuple(values))
    std = statistics.stdev(known)
    low, high = interval(mean, half_width(std, len(known)), within_one) if std else (mean, mean)
    return Metric(mean=mean, std=std, low=low, high=high, values=tuple(values))


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
    metrics = {
        name: metric([found.get(name) for found in by_seed], WITHIN_ONE.fullmatch(name) is not None) for name in names
    }
    return {name: found for name, found in metrics.items() if found.mean is not None}


def sweep_of(summaries: Mapping[int, Mapping[str, Any]], command: str = "") -> Sweep:
    """The record of a sweep from the summaries of its runs by seed; `command`: what it came about by."""
    first = next(iter(summaries.values()))
    origins = [Provenance(**summary["provenance"]) for summary in summaries.values() if summary.get("provenance")]
    versions = ", ".join(dict.fromkeys(origin.version for origin in origins))
    finished = max((origin.finished for origin in origins), default="")
    return Sweep(
        model=first["model"],
        data=first["data"],
        seeds=tuple(summaries),
        confidence=CONFIDENCE,
        metrics=aggregate(summaries),
        marks=tuple(dict.fromkeys(mark for summary in summaries.values() for mark in summary["marks"])),
        provenance=Provenance(command=command, finished=finished, version=versions),
    )
