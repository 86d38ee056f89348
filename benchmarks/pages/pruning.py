"""Accuracy against MACs: a table and a chart for each number of classes, and what is not better than peers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.charts import Chart, Line, Panel
from benchmarks.pages import pruning_tables as tables
from benchmarks.pages.pruning_rows import (
    AGNOSTIC,
    NAMES,
    OURS,
    TUNING,
    best_other,
    budgets_of,
    calibration_of,
    losses,
    refuse_twins,
    sizes_of,
    usual_calibration,
    usual_rows,
)
from benchmarks.pages.rows import draw_of, one_each, where
from benchmarks.pages.section import Section, section
from benchmarks.record import Record, Row
from benchmarks.subsets import OTHERS
from benchmarks.tables import Spread

FULL = {
    "accuracy_full": "full model, all its classes",
    "accuracy_full_limited": "full model, target classes only",
    "accuracy_full_limited_recalibrated": "… and recalibrated",
}
HORIZONTAL = "% of the full model's MACs"
VERTICAL = "accuracy over the full model's\non the target classes, points"


def render(record: Record) -> Section:
    """Make tables, comparisons, a chart for each number of classes and one of what class-adaptivity brings."""
    refuse_twins(record.rows)
    model = record.settings["model"].rpartition(":")[2]  # of an own network, its factory's name
    slug, outputs = "".join(c if c.isalnum() else "-" for c in model), record.settings["outputs"]
    by_size = {size: rows for size in sizes_of(record) if (rows := usual_rows(record, size))}
    charts = {f"pruning-{slug}-{n}": _chart(rows, model, f"{n} of {outputs:,} classes") for n, rows in by_size.items()}
    if adaptive := _adaptivity_chart(record, model):
        charts[f"pruning-{slug}-adaptivity"] = adaptive
    return section(
        "pruning",
        record,
        charts,
        model=model,
        names={"ours": NAMES[OURS], "agnostic": NAMES[AGNOSTIC]},
        full=FULL,
        usual=usual_calibration(record)[0],
        in_short=tables.in_short(record),
        parts=[
            {"size": size, "once": one_each(rows, draw_of), "tuning": list(_tuning(rows))}
            for size, rows in by_size.items()
        ],
        adaptivity=tables.adaptivity(record),
        calibration=tables.calibration(record),
        mixtures=any(calibration_of(row)[1] for row in record.rows),
        others=OTHERS,
        paper=tables.paper(record),
    )


def _tuning(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Yield tables with and without tuning, and at each budget the strategy that is best among others than ours."""
    for tune, title in TUNING.items():
        if tuned := where(rows, tune=tune):
            rivals = [(macs, *found) for macs in budgets_of(tuned) if (found := best_other(tuned, macs))]
            yield {
                "title": title,
                "accuracy": tables.by_strategy(tuned, tables.mean_and_loss),
                "worst": tables.by_strategy(tuned, tables.worst),
                "rivals": [{"macs": macs, "name": NAMES[name], "ahead": ahead} for macs, name, ahead in rivals],
            }


def _categories(budgets: Sequence[float]) -> tuple[str, ...]:
    return tuple(f"{100 * macs:g}" for macs in budgets)


def _chart(rows: Sequence[Row], model: str, targets: str) -> Chart:
    """Draw differences to the full model on the same classes: strategies were not all measured on the same draws."""
    panels = []
    for tune, name in TUNING.items():
        if tuned := where(rows, tune=tune):
            budgets, lines = budgets_of(tuned), []
            for strategy, label in NAMES.items():
                if own := where(tuned, strategy=strategy):
                    gains = [loss and replace(loss, mean=-loss.mean) for loss in losses(own, budgets)]
                    lines.append(Line.of(label, gains, 100, 3))
            for figure, label in list(FULL.items())[:2]:
                level = Spread.of(row[figure] - row["accuracy_full_limited"] for row in one_each(tuned, draw_of))
                lines.append(_reference(label, level, budgets))
            panels.append(Panel(f"{targets}: {name.lower()}", HORIZONTAL, VERTICAL, _categories(budgets), tuple(lines)))
    return Chart(f"{model}, {targets}", tuple(panels))


def _adaptivity_chart(record: Record, model: str) -> Chart | None:
    """Draw what class-adaptivity brings, a line for each number of classes; None for one number alone."""
    found, budgets = tables.adaptivity_of(record), budgets_of(record.rows)
    if len({size for size, _ in found}) < 2:
        return None
    panels = []
    for tune, title in TUNING.items():
        lines = [Line.of(f"{size} classes", each, 100, 3) for (size, of), each in found.items() if of == tune]
        if lines:
            lines.append(_reference("no difference", Spread(0.0, math.nan, 0), budgets))
            vertical = f"points over\n{NAMES[AGNOSTIC]}"
            panels.append(Panel(title, HORIZONTAL, vertical, _categories(budgets), tuple(lines)))
    return Chart(f"{model}, what class-adaptivity brings", tuple(panels))


def _reference(label: str, level: Spread, budgets: Sequence[float]) -> Line:
    """Draw one level over all budgets, without its spread."""
    return Line.of(label, [replace(level, deviation=math.nan)] * len(budgets), 100, 3, reference=True)
