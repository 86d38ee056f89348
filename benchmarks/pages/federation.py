"""What federation brings: a table for each number of images, and what was not worth it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.charts import Chart, Line, Panel
from benchmarks.pages.rows import paired, seed_of, where
from benchmarks.pages.section import Section, section
from benchmarks.record import Record, Row
from benchmarks.tables import Spread, measured, reach

NAMES = {
    "alone": "a phone alone",
    "reference": "+ reference images",
    "clusters": "+ private usage clusters",
    "scores": "+ private filter scores",
    "one-for-all": "one submodel for all, limited to own classes",
}
STEPS = (
    ("alone", "reference"),
    ("reference", "clusters"),
    ("clusters", "scores"),
    ("alone", "scores"),
    ("one-for-all", "scores"),
)
Arms = Mapping[str, Sequence[Row]]
"""Rows of the arms that were measured, in the order of `NAMES`."""


def render(record: Record) -> Section:
    """Make tables, verdicts and one chart."""
    ladder = ", ".join(f"{ratio:g}" for ratio in record.settings["ladder"])
    by_images = {images: where(record.rows, images=images) for images in record.distinct("images")}
    parts = []
    for images, rows in by_images.items():
        arms = _arms(rows)
        clusters = reach(row["clusters"] for row in rows if row["arm"] in ("clusters", "scores"))
        first, steps = next(iter(arms.values())), list(_steps(arms))
        parts.append(
            {"images": images, "rows": rows, "clusters": clusters, "first": first, "arms": arms, "steps": steps}
        )
    owners = record.settings.get("world") == "owners"
    charts = {}
    if not owners:
        charts["federation"] = _chart({images: _arms(by_images[images]) for images in sorted(by_images)})
    return section("federation", record, charts, ladder=ladder, names=NAMES, parts=parts, owners=owners)


def _arms(rows: Sequence[Row]) -> Arms:
    return {arm: found for arm in NAMES if (found := where(rows, arm=arm))}


def _steps(arms: Arms) -> Iterator[dict[str, Any]]:
    """Yield what each step between measured arms brings, from differences within seeds."""
    for before, after in STEPS:
        figures = ("accuracy", "accuracy_p5", "effective_macs")
        found = [paired(arms.get(after, ()), arms.get(before, ()), figure, seed_of) for figure in figures]
        accuracy, worst, macs = found
        if accuracy and worst and macs:
            name = f"all parts over {NAMES[before]}" if after == "scores" and before != "clusters" else NAMES[after]
            yield {
                "name": name, "accuracy": accuracy, "worst": worst, "macs": macs,
                "verdict": _verdict([accuracy, worst], [macs]),
            }  # fmt: skip


def _verdict(more: Sequence[Spread], less: Sequence[Spread]) -> str:
    """Say what the differences tell; `more`: figures to be raised, `less`: to be lowered."""
    if any(spread.count < 2 for spread in (*more, *less)):
        return "one seed, not told from chance"
    told = [s.mean for s in more if s.told_from_zero] + [-s.mean for s in less if s.told_from_zero]
    if not told:
        return "**brought nothing** that these seeds tell from chance"
    if all(value > 0 for value in told):
        return "better"
    return "**worse**" if all(value < 0 for value in told) else "**a trade**, better in one figure and worse in another"


def _chart(by_images: Mapping[int, Arms]) -> Chart:
    complete = [arm for arm in NAMES if all(arm in arms for arms in by_images.values())]

    def line(label: str, arm: str, figure: str, reference: bool = False) -> Line:
        spreads = [measured(row[figure] for row in arms[arm]) for arms in by_images.values()]
        return Line.of(label, spreads, 100, 3, reference)

    accuracy = [line(NAMES[arm], arm, "accuracy") for arm in complete]
    for label, figure in (("full model", "full"), ("full model, true classes", "full_limited")):
        accuracy += [line(label, arm, figure, reference=True) for arm in complete[:1]]
    macs = [line(NAMES[arm], arm, "effective_macs") for arm in complete]
    categories, below = tuple(map(str, by_images)), "images a phone learns from"
    panels = (
        Panel("Accuracy on own classes", below, "%", categories, tuple(accuracy)),
        Panel("Effective MACs", below, "% of the full model", categories, tuple(macs)),
    )
    return Chart("What federation brings", panels)
