"""What privacy costs: a table by population and ε, differences from no noise paired over seeds, and a chart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.charts import Chart, Line, Panel
from benchmarks.pages.rows import differences, one_each, paired, seed_of, where
from benchmarks.pages.section import Section, section
from benchmarks.record import Record, Row
from benchmarks.tables import Spread, measured

GOALS = ((8.0, 1000), (2.0, 10000))
MARGIN = 0.005


def render(record: Record) -> Section:
    """Make one table a population, verdicts on the goals, a chart."""
    by_phones = {phones: where(record.rows, phones=phones) for phones in sorted(record.distinct("phones"))}
    goals = [goal for epsilon, phones in GOALS for goal in _goals(by_phones.get(phones, []), epsilon, phones)]
    return section(
        "private_vs_open",
        record,
        {"private-vs-open": _chart(record)},
        once=one_each(record.rows, seed_of),
        populations={phones: [_line(rows, e) for e in _epsilons(rows)] for phones, rows in by_phones.items()},
        goals=goals,
        margin=MARGIN,
    )


def _epsilons(rows: Sequence[Row]) -> list[float | None]:
    """Return them falling, no noise first."""
    found = {row["epsilon"] for row in rows}
    return [None] * (None in found) + sorted((e for e in found if e is not None), reverse=True)


def _name(epsilon: float | None) -> str:
    return "no noise" if epsilon is None else f"ε = {epsilon:g}"


def _line(rows: Sequence[Row], epsilon: float | None) -> dict[str, Any]:
    """Return the rows of one ε, and what their accuracies differ from those without noise."""
    noisy, exact = where(rows, epsilon=epsilon), where(rows, epsilon=None) if epsilon is not None else []
    against = {figure: paired(noisy, exact, figure, seed_of) for figure in ("accuracy", "accuracy_personal")}
    return {"name": _name(epsilon), "rows": noisy, "against": against}


def _goals(rows: Sequence[Row], epsilon: float, phones: int) -> Iterator[dict[str, Any]]:
    """Yield whether the accuracy lost is within the margin, for both models."""
    noisy, exact = where(rows, epsilon=epsilon), where(rows, epsilon=None)
    for model, figure, macs in (
        ("cluster's submodel", "accuracy", "macs_ratio"),
        ("personal submodel", "accuracy_personal", "macs_personal"),
    ):
        found = differences(noisy, exact, figure, seed_of)
        if found:
            lost, word = Spread.of(found), "within"
            if lost.mean < -MARGIN:
                word = "**not within**"
            elif lost.mean - lost.half_width < -MARGIN:
                word = "on average within, these seeds do not rule out more than"
            compute = paired(noisy, exact, macs, seed_of)
            shared = {"epsilon": epsilon, "phones": phones, "model": model, "verdict": word}
            yield {**shared, "lost": lost, "worst": Spread.of([min(found)]), "macs": compute}


def _chart(record: Record) -> Chart:
    populations = sorted(record.distinct("phones"))

    def line(epsilon: float | None, figure: str) -> Line:
        rows = [where(record.rows, phones=phones, epsilon=epsilon) for phones in populations]
        spreads = [measured(row[figure] for row in found) for found in rows]
        return Line.of(_name(epsilon), spreads, 100, 3, reference=epsilon is None)

    def panel(title: str, figure: str) -> Panel:
        lines = tuple(line(epsilon, figure) for epsilon in _epsilons(record.rows))
        return Panel(title, "phones", "% on own classes", tuple(f"{n:,}" for n in populations), lines)

    panels = [panel("Cluster's submodel", "accuracy")]
    if any(row["accuracy_personal"] is not None for row in record.rows):
        panels.append(panel("Personal submodel", "accuracy_personal"))
    return Chart("What privacy costs", tuple(panels))
