"""The page of a sweep: each headline figure as its mean over the seeds with an interval, one dot a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedcaptor.simulations.records import REPORT, SWEEP, Metric, Number, Sweep, read
from fedcaptor.simulations.report.page import write_page
from fedcaptor.simulations.report.plot import Plot, axis_title
from fedcaptor.simulations.report.tables import explained
from fedcaptor.simulations.report.words import duration, number, percent

_TILES = (
    ("accuracy.full.mean", "Accuracy of the full model", "p"),
    ("accuracy.submodel.mean", "Own submodel alone", "p"),
    ("accuracy.personalised.mean", "With escalations", "p"),
    ("macs_ratio", "Computation", "p"),
    ("effective_macs_ratio", "Computation with escalations", "p"),
    ("download_bytes_ratio", "Download", "p"),
    ("out_of_set.auroc", "Telling other classes apart, AUROC", "n"),
    ("privacy.epsilon", "Privacy spent, ε", "n"),
)
ACCURACIES = (
    ("accuracy.full.mean", "full model"),
    ("accuracy.full_limited.mean", "full model, own classes only"),
    ("cluster_only.accuracy.mean", "cluster's submodel"),
    ("accuracy.submodel.mean", "own submodel alone"),
    ("accuracy.personalised.mean", "with escalations"),
    ("accuracy.personalised.p5", "with escalations, 5th percentile"),
)
COSTS = (
    ("macs_ratio", "MACs"),
    ("effective_macs_ratio", "effective MACs"),
    ("parameters_ratio", "parameters"),
    ("energy_ratio", "energy, modelled"),
    ("download_bytes_ratio", "download"),
    ("storage_ratio", "storage"),
)
OUTSIDE = (
    ("out_of_set.escalated_ratio", "images that are escalated"),
    ("out_of_set.accuracy", "accuracy on images of other classes"),
)
OTHER = (
    ("out_of_set.auroc", "AUROC of telling other classes apart"),
    ("clusters", "clusters"),
    ("privacy.epsilon", "ε spent"),
    ("faults.dropped", "dropped requests"),
    ("faults.refused", "refused replies"),
)
_BY_SEED = (
    ("accuracy.full_limited.mean", "full model, own classes only", percent),
    ("accuracy.submodel.mean", "own submodel alone", percent),
    ("accuracy.personalised.mean", "with escalations", percent),
    ("macs_ratio", "MACs", percent),
    ("effective_macs_ratio", "effective MACs", percent),
    ("download_bytes_ratio", "download", percent),
    ("clusters", "clusters", number),
    ("privacy.epsilon", "ε", number),
    ("seconds", "time", duration),
)


def interval(metric: Metric, unit: str) -> str:
    """The mean and, in brackets, its interval as text; `unit`: p for a ratio as percent, n for a number."""
    show = percent if unit == "p" else number
    if metric.low is None or metric.high is None:
        return show(metric.mean)
    return f"{show(metric.mean)} ({show(metric.low)} … {show(metric.high)})"


@dataclass(frozen=True)
class Row:
    """A headline figure. `unit` as in `interval`."""

    title: str
    metric: Metric
    unit: str

    @property
    def mean(self) -> str:
        """The mean alone."""
        return percent(self.metric.mean) if self.unit == "p" else number(self.metric.mean)

    @property
    def words(self) -> str:
        """Mean and interval."""
        return interval(self.metric, self.unit)


def write_sweep_report(directory: Path) -> Path:
    """Write `report.html` from `sweep.json`. Raises StateError that names a missing or damaged file."""
    sweep = read(directory / SWEEP, Sweep)
    rows = {"accuracies": _rows(sweep, ACCURACIES), "costs": _rows(sweep, COSTS), "outside": _rows(sweep, OUTSIDE)}
    other = _rows(sweep, OTHER, "n")
    plots = [
        dots("accuracies", "Accuracy on the owners' classes", "accuracy", sweep, rows["accuracies"]),
        dots("costs", "Costs", "full model: 100%", sweep, rows["costs"]),
        dots("outside", "Images of other classes", "share", sweep, rows["outside"]),
    ]
    values = {
        "name": directory.resolve().name,
        "sweep": sweep,
        "marks": explained(sweep.marks),
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
    return Plot(id, title, label, "", traces, layout, 120 + 48 * len(rows))


def _means(rows: Sequence[Row], confidence: float) -> dict[str, Any]:
    """Diamonds below the dots, with the interval as a line."""

    def reach(row: Row, end: Number) -> float:
        return 0.0 if end is None or row.metric.mean is None else abs(end - row.metric.mean)

    known = [(place, row) for place, row in enumerate(rows) if row.metric.mean is not None]
    return {
        "name": f"mean, {100 * confidence:.0f}% interval",
        "x": [row.metric.mean for _, row in known],
        "y": [place + 0.2 for place, _ in known],
        "hovertext": [f"mean {row.words}" for _, row in known],
        "marker": {"symbol": "diamond", "size": 11, "color": "second"},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [reach(row, row.metric.high) for _, row in known],
            "arrayminus": [reach(row, row.metric.low) for _, row in known],
            "color": "second",
            "thickness": 2,
        },
    }
