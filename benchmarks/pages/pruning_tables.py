"""Tables of the pruning benchmark: a column for each budget, and one of how many draws a line has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.pages.pruning_rows import (
    AGNOSTIC,
    NAMES,
    OURS,
    TUNING,
    ahead_of,
    best_other,
    budgets_of,
    calibration_of,
    loss_of,
    losses,
    sizes_of,
    usual_rows,
)
from benchmarks.pages.rows import draw_of, where
from benchmarks.record import Record, Row
from benchmarks.tables import Spread, reach, table

PAPER = {"vgg16": (0.595, "negligible", 0.5), "alexnet": (0.572, "under 3 %", 3.0)}
"""MACs kept and loss in Qin et al. (ASP-DAC 2019), and what we hold that loss to be, in points."""

Differences = Mapping[tuple[int, str], Sequence[Spread | None]]
"""Ours minus our control, one for each budget, by number of classes and tuning."""


def by_budget(budgets: Iterable[float], lines: Sequence[Sequence[str]]) -> str:
    """Return the table; empty without lines."""
    return table(("", *(f"{100 * macs:g} % MACs" for macs in budgets), "draws"), lines) if lines else ""


def _line(title: str, spreads: Sequence[Spread | None], differences: bool = False) -> list[str]:
    cells = [
        "–" if s is None else s.text(100, sign=differences) + (" ?" if differences and not s.told_from_zero else "")
        for s in spreads
    ]
    return [title, *cells, reach(s.count for s in spreads if s is not None)]


def by_strategy(rows: Sequence[Row], cell: Callable[[Sequence[Row], str], str]) -> str:
    """Return a line for each strategy, and one more where recalibration was measured without tuning."""
    lines, budgets = [], budgets_of(rows)
    for strategy, name in NAMES.items():
        own = where(rows, strategy=strategy)
        again = any(r["accuracy"] != r["accuracy_recalibrated"] for r in where(own, tune="none"))
        figures = {"accuracy": name, "accuracy_recalibrated": f"{name}, recalibrated"}
        for figure, title in list(figures.items())[: 1 + again if own else 0]:
            cells = [where(own, macs_target=macs) for macs in budgets]
            draws = reach(len(found) for found in cells if found)
            lines.append([title, *(cell(found, figure) if found else "–" for found in cells), draws])
    return by_budget(budgets, lines)


def mean_and_loss(rows: Sequence[Row], figure: str) -> str:
    loss = Spread.of(row["accuracy_full_limited"] - row[figure] for row in rows)
    return f"{Spread.of(row[figure] for row in rows).text(100)} ({loss.text(100)})"


def worst(rows: Sequence[Row], figure: str) -> str:
    lowest = min(row[f"{figure}_worst_class"] for row in rows)
    return f"{100 * min(row[figure] for row in rows):.1f} / {100 * lowest:.1f}"


def in_short(record: Record) -> str:
    """Tell for each number of classes what ours loses, and what it is ahead of the best other."""
    budgets, lines = budgets_of(record.rows), []
    for size in sizes_of(record):
        for tune, title in TUNING.items():
            rows = usual_rows(record, size, tune=tune)
            if own := where(rows, strategy=OURS):
                lines.append(_line(f"{size} classes, {title.lower()}: loss", losses(own, budgets)))
                rivals = [best_other(rows, macs) for macs in budgets]
                if any(rivals):
                    ahead = [found[1] if found else None for found in rivals]
                    lines.append(_line("… ahead of the best other", ahead, differences=True))
    return by_budget(budgets, lines)


def adaptivity_of(record: Record) -> Differences:
    """Return what looking at the target classes alone brings, in pairs of draws; without those that have none."""
    found = {}
    for size in sizes_of(record):
        for tune in TUNING:
            rows = usual_rows(record, size, tune=tune)
            found[size, tune] = [ahead_of(rows, AGNOSTIC, macs) for macs in budgets_of(record.rows)]
    return {key: differences for key, differences in found.items() if any(differences)}


def adaptivity(record: Record) -> str:
    lines = [
        _line(f"{size} classes, {TUNING[tune].lower()}", found, differences=True)
        for (size, tune), found in adaptivity_of(record).items()
    ]
    return by_budget(budgets_of(record.rows), lines)


def calibration(record: Record) -> list[tuple[int, str]]:
    """Show loss by number of calibration images, where several were measured, in pairs of draws; a table a size."""
    kinds = sorted({calibration_of(row) for row in record.rows}, key=lambda kind: (kind[1], kind[0]))
    header = ("", *(f"{images}, mixture {mixture:g}" if mixture else f"{images}" for images, mixture in kinds))
    tables = []
    for size in sizes_of(record) if len(kinds) > 1 else ():
        rows, lines = [row for row in where(record.rows, tune="none") if len(row["classes"]) == size], []
        for strategy, name in NAMES.items():
            for macs in budgets_of(rows):
                chosen = where(rows, strategy=strategy, macs_target=macs)
                by_kind = [{draw_of(r): loss_of(r) for r in chosen if calibration_of(r) == kind} for kind in kinds]
                seen = [of_draw for of_draw in by_kind if of_draw]
                common = set(seen[0]).intersection(*seen[1:]) if len(seen) > 1 else set()
                if common:
                    cells = (Spread.of(of[d] for d in common).text(100) if of else "–" for of in by_kind)
                    lines.append([f"{name}, {100 * macs:g} % MACs", *cells])
        tables += [(size, table(header, lines))] if lines else []
    return tables


def paper(record: Record) -> dict[str, Any] | None:
    """Set the paper's settings beside ours; None for a network that is not in the paper."""
    model = record.settings["model"].removeprefix("torchvision/")
    if model not in PAPER:
        return None
    kept, loss, points = PAPER[model]
    lines = []
    for size in sizes_of(record):
        for tune, title in TUNING.items():
            rows = usual_rows(record, size, tune=tune, strategy=OURS)
            found = dict(zip(budgets_of(rows), losses(rows, budgets_of(rows)), strict=True))
            if rows:
                small = [macs for macs, spread in found.items() if spread and 100 * spread.mean <= points]
                there = spread.text(100, 2) if (spread := found.get(kept)) else "not measured"
                lines.append(
                    [f"{size} classes, {title.lower()}", there, f"{100 * min(small):g} %" if small else "none measured"]
                )
    header = ("", f"loss at {100 * kept:g} % MACs, points", f"fewest MACs with a loss of at most {points:g}")
    return {"kept": kept, "loss": loss, "points": points, "table": table(header, lines)}
