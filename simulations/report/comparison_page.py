"""The page that shows several runs and sweeps side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fedcaptor.simulations.records import REPORT, SUMMARY, SWEEP, Metric, Provenance, Summary, Sweep, read
from fedcaptor.simulations.report.page import write_page
from fedcaptor.simulations.report.plot import Plot, axis_title
from fedcaptor.simulations.report.sweep_page import ACCURACIES, COSTS, OTHER, OUTSIDE, interval
from fedcaptor.simulations.report.tables import explained
from fedcaptor.simulations.report.words import plain, short
from fedcaptor.simulations.sweep import aggregate

COMPARISON = "comparison.html"
_FIGURES = (
    *((name, title, "p") for name, title in (*ACCURACIES, *COSTS, *OUTSIDE)),
    *((name, title, "n") for name, title in (("phones", "phones"), ("rounds", "rounds"), *OTHER)),
)
_COLOURS, _SYMBOLS = ("first", "second", "third"), ("circle", "square", "triangle-up", "cross")


@dataclass(frozen=True)
class Column:
    """A run, or a sweep with means over its seeds. `name`: its folder as seen from the page's; `link`: its report."""

    name: str
    link: str
    what: str
    metrics: Mapping[str, Metric]
    marks: Sequence[str]
    provenance: Provenance | None


def write_comparison(directories: Sequence[Path], path: Path) -> Path:
    """Write the page of several finished runs and sweeps. Raises StateError that names a missing or damaged file."""
    columns = [_column(directory, path.parent) for directory in directories]
    plot = trade(columns)
    values = {
        "columns": columns,
        "marks": explained(mark for column in columns for mark in column.marks),
        "figures": [
            (title, [interval(column.metrics.get(name, Metric()), unit) for column in columns])
            for name, title, unit in _FIGURES
            if any(name in column.metrics for column in columns)
        ],
        "sweeps": any(metric.low is not None for column in columns for metric in column.metrics.values()),
    }
    return write_page(path, "comparison.html.j2", [plot] if plot else [], values)


def _column(directory: Path, page: Path) -> Column:
    place = Path(os.path.relpath(directory.resolve(), page.resolve())).as_posix()
    record: Summary | Sweep
    metrics: Mapping[str, Metric]
    if (directory / SWEEP).exists():
        record = read(directory / SWEEP, Sweep)
        metrics, seeds = record.metrics, f"seeds {', '.join(map(str, record.seeds))}"
    else:
        record = read(directory / SUMMARY, Summary)
        metrics, seeds = aggregate({record.seed: record.plain()}), f"seed {record.seed}"
    what = f"{record.model} on {record.data}, {seeds}"
    return Column(place, quote(f"{place}/{REPORT}"), what, metrics, record.marks, record.provenance)


def trade(columns: Sequence[Column]) -> Plot | None:
    """Accuracy with escalations against effective MACs, one mark for each column."""
    traces = []
    for number, column in enumerate(columns):
        macs, accuracy = (column.metrics.get(n) for n in ("effective_macs_ratio", "accuracy.personalised.mean"))
        if macs and accuracy:
            traces.append(_mark(short(column.name, 40), number, macs, accuracy))
    layout = {
        "xaxis": {"title": axis_title("effective MACs (full model: 100%)"), "tickformat": ".0%", "rangemode": "tozero"},
        "yaxis": {"title": axis_title("accuracy with escalations"), "tickformat": ".1~%"},
    }
    label = "Accuracy against computation; the numbers are in the table below."
    note = "Up and to the left is better."
    return Plot("trade", "Accuracy against computation", label, note, traces, layout, 340) if traces else None


def _mark(name: str, number: int, macs: Metric, accuracy: Metric) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name),
        "x": [macs.mean],
        "y": [accuracy.mean],
        "marker": {
            "symbol": _SYMBOLS[number // len(_COLOURS) % len(_SYMBOLS)],
            "size": 14,
            "color": _COLOURS[number % len(_COLOURS)],
        },
        "hovertemplate": "%{y:.1%} accuracy at %{x:.1%} of the effective MACs",
    }
