"""The page of a sweep: each headline figure as its mean over the seeds with an interval, one dot a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedcaptor.simulations.records import REPORT, SWEEP, Metric, Sweep, read
from fedcaptor.simulations.report.page import write_page
from fedcaptor.simulations.report.plot import Plot, axis_title
from fedcaptor.simulations.report.words import duration, number, percent

_TILES = (
    ("accuracy.personalised.mean", "Accuracy of the own model", "p"),
    ("macs_ratio", "Computation", "p"),
    ("effective_macs_ratio", "Computation with escalation", "p"),
    ("download_bytes_ratio", "Download", "p"),
    ("out_of_set.auroc", "Telling other classes apart, AUROC", "n"),
    ("privacy.epsilon", "Privacy spent, ε", "n"),
)
_ACCURACIES = (
    ("accuracy.full.mean", "full model"),
    ("accuracy.full_limited.mean", "full model, own classes only"),
    ("cluster_only.accuracy.mean", "cluster's model"),
    ("accuracy.personalised.mean", "own model"),
    ("accuracy.personalised.p5", "own model, 5th percentile"),
)
_COSTS = (
    ("macs_ratio", "MACs"),
    ("effective_macs_ratio", "MACs with escalation"),
    ("parameters_ratio", "parameters"),
    ("download_bytes_ratio", "download"),
    ("storage_ratio", "storage"),
)
_OUTSIDE = (
    ("out_of_set.escalated_ratio", "images that the own model is unsure of"),
    ("out_of_set.accuracy", "accuracy on images of other classes"),
)
_OTHER = (
    ("out_of_set.auroc", "AUROC of telling other classes apart"),
    ("clusters", "clusters"),
    ("privacy.epsilon", "ε spent"),
    ("faults.dropped", "dropped requests"),
    ("faults.refused", "refused replies"),
)
_BY_SEED = (
    ("accuracy.full_limited.mean", "full model, own classes only", percent),
    ("accuracy.personalised.mean", "own model", percent),
    ("macs_ratio", "MACs", percent),
    ("effective_macs_ratio", "with escalation", percent),
    ("download_bytes_ratio", "download", percent),
    ("clusters", "clusters", number),
    ("privacy.epsilon", "ε", number),
    ("seconds", "time", duration),
)


def interval(metric: Metric, unit: str) -> str:
    """`mean ± half of the interval` as text; `unit`: p for a ratio as percent, n for a number."""
    if metric.mean is None:
        return "–"
    half = None if metric.low is None or metric.high is None else (metric.high - metric.low) / 2
    if unit == "p":
        return percent(metric.mean) if half is None else f"{100 * metric.mean:.1f} ± {percent(half)}"
    return number(metric.mean) if half is None else f"{number(metric.mean)} ± {half:.2g}"


@dataclass(frozen=True)
class Row:
    """A headline figure. `unit` as in `interval`."""

    title: str
    metric: Metric
    unit: str

    @property
    def words(self) -> str:
        """Mean and interval."""
        return interval(self.metric, self.unit)


def write_sweep_report(directory: Path) -> Path:
    """Write `report.html` from `sweep.json`. Raises StateError that names a missing or damaged file."""
    sweep = read(directory / SWEEP, Sweep)
    rows = {"accuracies": _rows(sweep, _ACCURACIES), "costs": _rows(sweep, _COSTS), "outside": _rows(sweep, _OUTSIDE)}
    other = _rows(sweep, _OTHER, "n")
    plots = [
        dots("accuracies", "Accuracy on the owners' classes", "accuracy", sweep, rows["accuracies"]),
        dots("costs", "Costs", "full model: 100%", sweep, rows["costs"]),
        dots("outside", "Images of other classes", "share", sweep, rows["outside"]),
    ]
    values = {
        "sweep": sweep,
        "marks": list(sweep.marks),
        "tiles": [Row(title, sweep.metrics[name], unit) for name, title, unit in _TILES if name in sweep.metrics],
        "headline": [row for group in rows.values() for row in group] + other,
        "by_seed": _by_seed(sweep),
        "heads": [title for name, title, _ in _BY_SEED if name in sweep.metrics],
    }
    return write_page(directory / REPORT, "sweep.html.j2", [plot for plot in plots if plot is not None], values)


def _rows(sweep: Sweep, names: Sequence[tuple[str, str]], unit: str = "p") -> list[Row]:
    return [Row(title, sweep.metrics[name], unit) for name, title in names if name in sweep.metrics]


def _by_seed(sweep: Sweep) -> list[tuple[int, list[str]]]:
    """Each seed's figures."""
    columns = [(sweep.metrics[name].values, show) for name, _, show in _BY_SEED if name in sweep.metrics]
    return [(seed, [show(values[place]) for values, show in columns]) for place, seed in enumerate(sweep.seeds)]


def dots(id: str, title: str, axis: str, sweep: Sweep, rows: Sequence[Row]) -> Plot | None:
    """One dot for each seed and figure, beside the mean with its interval."""
    if not rows:
        return None
    apart = np.linspace(-0.3, 0.0, len(sweep.seeds)).tolist() if len(sweep.seeds) > 1 else [-0.15]
    points = [
        (value, place + apart[index], f"seed {seed}: {percent(value)}")
        for place, row in enumerate(rows)
        for index, (seed, value) in enumerate(zip(sweep.seeds, row.metric.values, strict=True))
        if value is not None
    ]
    x, y, hover = (list(column) for column in zip(*points, strict=True))
    seeds = {"x": x, "y": y, "hovertext": hover, "marker": {"size": 9, "color": "first", "opacity": 0.75}}
    common = {"type": "scatter", "mode": "markers", "hoverinfo": "text"}
    traces = [{**common, "name": "one seed", **seeds}, {**common, **_means(rows, sweep.confidence)}]
    layout = {
        "xaxis": {"title": axis_title(axis), "tickformat": ".0%"},
        "yaxis": {
            "tickvals": list(range(len(rows))),
            "ticktext": [f"{row.title} " for row in rows],
            "range": [len(rows) - 0.5, -0.5],
            "showgrid": False,
            "automargin": True,
        },
    }
    label = f"{title}: one dot for each seed; the numbers are in the tables."
    return Plot(id, title, label, "", traces, layout, 120 + 48 * len(rows), 480)


def _means(rows: Sequence[Row], confidence: float) -> dict[str, Any]:
    """Diamonds below the dots, with the interval as a line."""

    def reach(row: Row) -> float:
        found = row.metric
        return 0.0 if found.high is None or found.mean is None else found.high - found.mean

    known = [(place, row) for place, row in enumerate(rows) if row.metric.mean is not None]
    return {
        "name": f"mean, {100 * confidence:.0f}% interval",
        "x": [row.metric.mean for _, row in known],
        "y": [place + 0.2 for place, _ in known],
        "hovertext": [f"mean {row.words}" for _, row in known],
        "marker": {"symbol": "diamond", "size": 11, "color": "second"},
        "error_x": {"type": "data", "array": [reach(row) for _, row in known], "color": "second", "thickness": 2},
    }
