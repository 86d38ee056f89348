"""What federation brings: a table for each world and size, with differences from the defaults within seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.charts import Chart, Line, Panel
from benchmarks.federation import ARMS, WORLDS
from benchmarks.pages.rows import paired, seed_of, where
from benchmarks.pages.section import Section, section
from benchmarks.record import Record, Row
from benchmarks.tables import Spread, measured

AGAINST = "shipped"


def render(record: Record) -> Section:
    """Make tables and one chart."""
    parts = list(_parts(record.rows))
    version = "-earlier" if "earlier" in record.settings else ""
    name = f"federation-{record.settings['model'].rpartition(':')[2].replace('/', '-')}{version}"
    arms = {arm["name"]: ARMS[arm["name"]] for part in parts for arm in part["arms"]}
    return section("federation", record, {name: _chart(parts)}, parts=parts, arms=arms)


def _parts(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Yield worlds and sizes, each with the rows of its arms in their order; arms without private sums have no ε."""
    cells = dict.fromkeys((row["world"], row["images"], row["phones"]) for row in rows)
    for world, images, phones in sorted(cells, key=lambda cell: (list(WORLDS).index(cell[0]), *cell[1:])):
        of_cell = where(rows, world=world, images=images, phones=phones)
        without = where(of_cell, epsilon=None)
        budgets = sorted({row["epsilon"] for row in of_cell} - {None}, reverse=True)
        for epsilon in budgets or [None]:
            present = without if epsilon is None else [*without, *where(of_cell, epsilon=epsilon)]
            arms = {arm: found for arm in ARMS if (found := where(present, arm=arm))}
            yield {
                "world": world, "setting": WORLDS[world], "images": images, "phones": phones, "epsilon": epsilon,
                "rows": present, "arms": [_arm(arm, arms) for arm in arms],
            }  # fmt: skip


def _arm(name: str, arms: dict[str, list[Row]]) -> dict[str, Any]:
    rows = arms[name]
    against = () if name == AGAINST else arms.get(AGAINST, ())
    more, less = (_interval(paired(rows, against, figure, seed_of)) for figure in ("accuracy", "effective_macs"))
    return {"name": name, "rows": rows, "accuracy": more, "macs": less}


def _interval(spread: Spread | None) -> str:
    """Write a difference in points with half its 95 % confidence interval, bold where that leaves out zero."""
    if spread is None:
        return "–"
    mean = f"{100 * spread.mean:+.1f}".replace("-", "−")
    if spread.count < 2:
        return mean
    text = f"{mean} ± {100 * spread.half_width:.1f}"
    return f"**{text}**" if spread.told_from_zero else text


def _chart(parts: Sequence[dict[str, Any]]) -> Chart:
    """Draw each arm over worlds and sizes."""
    sizes = len({(part["images"], part["phones"], part["epsilon"]) for part in parts}) > 1
    categories = tuple(
        f"{part['world']}\n{part['images']} photos, {part['phones']:,} phones" if sizes else part["world"]
        for part in parts
    )
    names = dict.fromkeys(arm["name"] for part in parts for arm in part["arms"])

    def line(name: str, figure: str) -> Line:
        found = [next((arm["rows"] for arm in part["arms"] if arm["name"] == name), ()) for part in parts]
        return Line.of(name, [measured(row[figure] for row in rows) for rows in found], 100, 3)

    panels = tuple(
        Panel(title, "", unit, categories, tuple(line(name, figure) for name in names))
        for title, unit, figure in (
            ("Accuracy on own classes", "%", "accuracy"),
            ("Effective MACs", "% of the full model", "effective_macs"),
        )
    )
    return Chart("What federation brings", panels)
