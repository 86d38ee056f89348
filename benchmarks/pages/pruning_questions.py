"""What the rows of the pruning benchmark answer: over peers, over our own control, by images seen, beside the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.charts import Chart, Panel
from benchmarks.pages.pruning_rows import (
    AGNOSTIC,
    NAMES,
    OURS,
    TUNING,
    best_other,
    budgets_of,
    calibration_of,
    draw_of,
    header_of,
    line_of,
    loss_of,
    paired,
    sizes_of,
    usual_rows,
)
from benchmarks.record import Record, Row
from benchmarks.subsets import OTHERS
from benchmarks.tables import Spread, measured, reach, table

PAPER = {
    "vgg16": (0.595, "negligible", 0.5),
    "alexnet": (0.572, "under 3 %", 3.0),
    "torchvision/vgg16": (0.595, "negligible", 0.5),
    "torchvision/alexnet": (0.572, "under 3 %", 3.0),
}
"""MACs kept and loss in Qin et al. (ASP-DAC 2019), and what we hold that loss to be, in points."""


SHORT = """\
What *reconstruct* loses against the full model that answers among the needed classes only, points; then how far it is
ahead of the best other strategy, paired over the draws that both have. **?**: not told from chance."""

MIXTURE = f"""\
*Mixture*: as many altogether, as a phone might hold them: uneven shares of the needed classes, from a symmetric
Dirichlet distribution of the concentration named, and {100 * OTHERS:g} % of other classes."""


def in_short(record: Record) -> list[str]:
    """For each number of classes what ours loses, and what it is ahead of the best other."""
    budgets, lines = budgets_of(record.rows), []
    for size in sizes_of(record):
        for tune, title in TUNING.items():
            rows = usual_rows(record, size, tune)
            own = [r for r in rows if r["strategy"] == OURS]
            if own:
                losses = [measured(loss_of(r) for r in own if r["macs_target"] == macs) for macs in budgets]
                rivals = [best_other(rows, macs) for macs in budgets]
                lines.append(_line(f"{size} classes, {title.lower()}: loss", losses))
                if any(rivals):
                    ahead = [found[1] if found else None for found in rivals]
                    lines.append(_line("… ahead of the best other", ahead, differences=True))
    return ["### In short", SHORT, table(header_of(budgets), lines)] if lines else []


def _line(title: str, spreads: Sequence[Spread | None], differences: bool = False) -> list[str]:
    cells = [
        "–" if s is None else s.text(100, sign=differences) + (" ?" if differences and not s.told_from_zero else "")
        for s in spreads
    ]
    return [title, *cells, reach(s.count for s in spreads if s is not None)]


def against_peers(rows: Sequence[Row]) -> list[str]:
    """A line for each budget: ours over the strategy that is best there among all others but our own control."""
    lines = []
    for macs in budgets_of(rows):
        if found := best_other(rows, macs):
            rival, difference = found
            lines.append(
                f"- {100 * macs:g} % MACs: {difference.text(100, sign=True)} points over the best other, "
                f"{NAMES[rival]}: {_verdict(difference)}."
            )
    return lines


def _verdict(difference: Spread) -> str:
    if difference.count < 2:
        return "one draw, not told from chance"
    if not difference.told_from_zero:
        return "**not better** that these draws tell from chance"
    return "better" if difference.mean > 0 else "**worse**"


def adaptivity(record: Record) -> list[str]:
    """What looking at the needed classes alone brings, in pairs of draws."""
    lines = []
    for (size, tune), found in _class_differences(record).items():
        lines.append(_line(f"{size} classes, {TUNING[tune].lower()}", found, differences=True))
    if not lines:
        return []
    return [
        "### What class-adaptivity brings",
        f"*{NAMES[OURS]}* minus *{NAMES[AGNOSTIC]}*, points, paired over draws; **?**: not told from chance.",
        table(header_of(budgets_of(record.rows)), lines),
    ]


def adaptivity_chart(record: Record, model: str) -> Chart | None:
    """The same as a chart, a line for each number of classes; None for one number alone."""
    found = _class_differences(record)
    if len({size for size, _ in found}) < 2:
        return None
    categories = tuple(f"{100 * macs:g}" for macs in budgets_of(record.rows))
    nothing = line_of("no difference", [Spread(0.0, math.nan, 0)] * len(categories), reference=True)
    panels = []
    for tune, title in TUNING.items():
        lines = [line_of(f"{size} classes", each) for (size, of), each in found.items() if of == tune]
        if lines:
            vertical = f"points over\n{NAMES[AGNOSTIC]}"
            panels.append(Panel(title, "% of the full model's MACs", vertical, categories, (*lines, nothing)))
    return Chart(f"{model}, what class-adaptivity brings", tuple(panels))


def _class_differences(record: Record) -> dict[tuple[int, str], list[Spread | None]]:
    """Ours minus our control by number of classes and tuning, one for each budget; without those of none."""
    found = {}
    for size in sizes_of(record):
        for tune in TUNING:
            rows = usual_rows(record, size, tune)
            found[size, tune] = [paired(rows, OURS, AGNOSTIC, macs) for macs in budgets_of(record.rows)]
    return {key: differences for key, differences in found.items() if any(differences)}


def calibration_size(record: Record) -> list[str]:
    """Loss by number of calibration images, where several were measured, in pairs of draws."""
    kinds = sorted({calibration_of(row) for row in record.rows}, key=lambda kind: (kind[1], kind[0]))
    if len(kinds) < 2:
        return []
    parts = []
    for size in sizes_of(record):
        rows = [row for row in record.rows if len(row["classes"]) == size and row["tune"] == "none"]
        lines = []
        for strategy, name in NAMES.items():
            for macs in budgets_of(rows):
                chosen = [r for r in rows if r["strategy"] == strategy and r["macs_target"] == macs]
                by_kind = [{draw_of(r): loss_of(r) for r in chosen if calibration_of(r) == kind} for kind in kinds]
                seen = [losses for losses in by_kind if losses]
                common = set(seen[0]).intersection(*seen[1:]) if len(seen) > 1 else set()
                if common:
                    cells = (Spread.of(of[d] for d in common).text(100) if of else "–" for of in by_kind)
                    lines.append([f"{name}, {100 * macs:g} % MACs", *cells])
        if lines:
            header = ("", *(f"{images}, mixture {mixture:g}" if mixture else f"{images}" for images, mixture in kinds))
            parts += [f"{size} classes, no training; loss in points, on draws that all have:", table(header, lines)]
    text = "Unlabelled images a class." + (f" {MIXTURE}" if any(mixture for _, mixture in kinds) else "")
    return ["### Calibration set size", text, *parts] if parts else []


def paper(record: Record) -> list[str]:
    """The paper's settings beside ours; left out for a network that is not in the paper."""
    model = record.settings["model"]
    if model not in PAPER:
        return []
    kept, loss, points = PAPER[model]
    lines = []
    for size in sizes_of(record):
        for tune, title in TUNING.items():
            rows = [row for row in usual_rows(record, size, tune) if row["strategy"] == OURS]
            losses = {m: Spread.of(loss_of(r) for r in rows if r["macs_target"] == m) for m in budgets_of(rows)}
            if rows:
                small = [macs for macs, spread in losses.items() if 100 * spread.mean <= points]
                there = losses[kept].text(100, 2) if kept in losses else "not measured"
                fewest = f"{100 * min(small):g} %" if small else "none measured"
                lines.append([f"{size} classes, {title.lower()}", there, fewest])
    header = ("", f"loss at {100 * kept:g} % MACs, points", f"fewest MACs with a loss of at most {points:g}")
    return [
        "### Beside the paper",
        f"Qin et al. (ASP-DAC 2019) report {100 * (1 - kept):.1f} % fewer MACs at a loss that is {loss}. How many "
        "classes were kept, and on which data, is not stated, so this is no comparison of like with like. Our loss is "
        "against the full model limited to the needed classes, which is harder than against the full model with all "
        f"its classes; {'“negligible” is taken for 0.5 points' if points < 1 else 'per cent are taken for points'}.",
        table(header, lines),
    ]
