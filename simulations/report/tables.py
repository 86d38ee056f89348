"""Rows of the report's tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedcaptor.common.config import MARKS
from fedcaptor.simulations.records import Cluster, Phase, Phones, Summary, known
from fedcaptor.simulations.report.words import number, percent, size


def explained(marks: Iterable[str]) -> list[tuple[str, str]]:
    """Each mark once, with what it means, empty where that is not known."""
    return [(mark, MARKS.get(mark, "")) for mark in dict.fromkeys(marks)]


def marks_of(summary: Summary) -> list[tuple[str, str]]:
    """What must be said of the run beside its numbers."""
    marks = list(summary.marks)
    off = summary.privacy is not None and summary.privacy.epsilon is None
    if off and not any("noise" in mark.lower() for mark in marks):
        marks.append("noise off")
    return explained(marks)


_PER_PHONE = (
    ("accuracy_full", "accuracy of the full model", percent),
    ("accuracy_full_limited", "accuracy of the full model, own classes only", percent),
    ("accuracy_submodel", "accuracy of the own submodel alone", percent),
    ("accuracy", "accuracy with escalations", percent),
    ("macs_ratio", "MACs, of the full model's", percent),
    ("effective_macs_ratio", "effective MACs, with escalations", percent),
    ("escalated", "images that are escalated", percent),
    ("download_bytes", "delivered to the phone", size),
    ("stored_bytes", "stored on the phone beside the full model", size),
    ("classes", "own classes", number),
)


def quantiles(phones: Phones) -> list[tuple[str, list[str]]]:
    """For each figure of the phones: mean, 5 %, 25 %, 50 %, 75 % and 95 %."""
    rows = []
    for field, title, show in _PER_PHONE:
        values = known(getattr(phones, field))
        if values.size:
            points = [float(values.mean()), *map(float, np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]))]
            rows.append((title, [show(point) for point in points]))
    return rows


def gains(phones: Phones) -> list[tuple[str, int, int, int]]:
    """Against each full model: phones whose own model is better, equal, worse."""
    rows = []
    for title, before in (
        ("the full model", phones.accuracy_full),
        ("the full model, own classes only", phones.accuracy_full_limited),
    ):
        pairs = [(a, b) for a, b in zip(phones.accuracy, before, strict=False) if a is not None and b is not None]
        if pairs:
            better, worse = sum(a > b + 1e-9 for a, b in pairs), sum(a < b - 1e-9 for a, b in pairs)
            rows.append((title, better, len(pairs) - better - worse, worse))
    return rows


def rest_of_macs(clusters: Sequence[Cluster]) -> list[float | None]:
    """For each cluster with layers, the share of MACs that is in none of these; None where shares are unknown, or
    overlap, as those of older versions do.
    """
    shares = [[layer.share_of_macs for layer in cluster.layers] for cluster in clusters if cluster.layers]
    rest = [1 - sum(share or 0.0 for share in each) for each in shares]
    return [None if None in each or left < -1e-9 else abs(left) for each, left in zip(shares, rest, strict=True)]


@dataclass(frozen=True)
class Totals:
    """What one phase took over all rounds."""

    phase: str
    seconds: float
    asked: int
    replies: int
    dropped: int
    refused: dict[str, int]
    bytes_down: int
    bytes_up: int


def by_phase(phases: Sequence[Phase]) -> list[Totals]:
    """Totals over all rounds, one for each phase."""
    found: dict[str, list[Phase]] = {}
    for phase in phases:
        found.setdefault(phase.phase, []).append(phase)
    return [
        Totals(
            phase=name,
            seconds=sum(p.seconds or 0 for p in of),
            asked=sum(p.asked for p in of),
            replies=sum(p.replies for p in of),
            dropped=sum(p.dropped for p in of),
            refused=dict(sum((Counter(p.refused) for p in of), Counter())),
            bytes_down=sum(p.bytes_down for p in of),
            bytes_up=sum(p.bytes_up for p in of),
        )
        for name, of in found.items()
    ]
