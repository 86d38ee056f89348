"""Line charts as SVG files, drawn by matplotlib from plain values."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.tables import Spread

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999", "#8c510a", "#4d9221")
"""Okabe & Ito, told apart by most eyes, and two more."""


@dataclass(frozen=True)
class Line:
    """One value a category; `spread` NaN where unknown. `reference`: drawn thin and grey, not to be chosen from."""

    label: str
    values: tuple[float, ...]
    spread: tuple[float, ...]
    reference: bool = False

    @classmethod
    def of(
        cls, label: str, spreads: Sequence[Spread | None], scale: float, digits: int, reference: bool = False
    ) -> Line:
        """Draw means and deviations, times `scale` and rounded; a gap where nothing was measured."""
        known = [spread or Spread(math.nan, math.nan, 0) for spread in spreads]
        means, deviations = (tuple(round(scale * getattr(s, f), digits) for s in known) for f in ("mean", "deviation"))
        return cls(label, means, deviations, reference)


@dataclass(frozen=True)
class Panel:
    """`categories`: texts under the horizontal axis, one a value."""

    title: str
    horizontal: str
    vertical: str
    categories: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Chart:
    """Panels side by side, one legend: a label has one colour in all of them."""

    title: str
    panels: tuple[Panel, ...]

    @property
    def digest(self) -> str:
        """Return a digest of all that is drawn; the file carries it, so that a page with an old figure is found out."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


def draw(chart: Chart, path: Path) -> None:
    """Write the chart; the same chart gives the same bytes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": chart.digest, "svg.fonttype": "none", "font.size": 9}):
        panels, colours = len(chart.panels), colours_of(chart)
        columns = min(4, 2 * panels, len(colours))
        legend = 0.2 * -(-len(colours) // columns) + 0.2  # inches
        figure, axes = pyplot.subplots(1, panels, figsize=(max(5.4, 4.6 * panels), 2.7 + legend), squeeze=False)
        for axis, panel in zip(axes[0], chart.panels, strict=True):
            _panel(axis, panel, colours)
        drawn = [axis.get_legend_handles_labels() for axis in axes[0]]
        handles = {label: handle for each in drawn for handle, label in zip(*each, strict=True)}
        ordered = [handles[label] for label in colours]
        figure.legend(ordered, list(colours), loc="lower center", ncols=columns, frameon=False)
        figure.tight_layout(rect=(0, legend / (2.7 + legend), 1, 1))
        figure.savefig(path, metadata={"Date": None, "Title": chart.title, "Description": chart.digest})
        pyplot.close(figure)


def drawn_digest(path: Path) -> str:
    """Return the digest that a drawn file carries, empty without one."""
    _, found, rest = path.read_text().partition("<dc:description>")
    return rest.partition("<")[0] if found else ""


def _panel(axis: object, panel: Panel, colours: Mapping[str, str]) -> None:
    places = range(len(panel.categories))
    for number, line in enumerate(panel.lines):
        # So that error bars do not hide each other
        aside = 0.0 if line.reference else 0.03 * (number - (len(panel.lines) - 1) / 2)
        style = {"linestyle": ":", "marker": ""} if line.reference and len(places) > 1 else {"marker": "o"}
        # Lines lead over what was not measured
        points = [
            (p + aside, v, 0.0 if s != s else s) for p, v, s in zip(places, line.values, line.spread, strict=True)
        ]
        at, values, errors = ([point[part] for point in points if point[1] == point[1]] for part in range(3))
        colour = colours[line.label]
        axis.errorbar(  # type: ignore[attr-defined]
            at, values, errors, label=line.label, color=colour, capsize=2, ms=4, **style
        )
    axis.set(title=panel.title, xlabel=panel.horizontal, ylabel=panel.vertical)  # type: ignore[attr-defined]
    axis.set_xticks(list(places), panel.categories)  # type: ignore[attr-defined]
    axis.grid(axis="y", alpha=0.3)  # type: ignore[attr-defined]
    axis.spines[["top", "right"]].set_visible(False)  # type: ignore[attr-defined]


def colours_of(chart: Chart) -> dict[str, str]:
    """Give a colour to each label of any panel, references last."""
    lines = {line.label: line for panel in chart.panels for line in panel.lines}
    bright, grey = iter(COLOURS), iter(("#444444", "#999999"))
    ordered = sorted(lines.values(), key=lambda line: line.reference)
    return {line.label: next(grey, "#999999") if line.reference else next(bright) for line in ordered}
