"""What a fleet's corrections teach the output layer: a table of gains in points for each world and fleet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby, product
from typing import Any

from benchmarks.corrections import KNOWN, PARTS
from benchmarks.federation import WORLDS
from benchmarks.pages.rows import one_each, seed_of, where
from benchmarks.pages.section import Section, section
from benchmarks.record import Record, Row
from benchmarks.tables import measured


def render(record: Record) -> Section:
    fleets: list[dict[str, Any]] = [
        {"world": world, "setting": WORLDS[world], "images": images, "phones": phones, "rows": list(rows)}
        for (world, images, phones), rows in groupby(sorted(record.rows, key=_fleet), _fleet)
    ]
    for fleet in fleets:
        fleet["parts"] = [_part(fleet["rows"], part) for part in PARTS]
        fleet["seeds"] = one_each(where(fleet["rows"], known="corrections"), seed_of)
    return section("corrections", record, fleets=fleets, columns=_columns(record.rows))


def _fleet(row: Row) -> tuple[str, int, int]:
    return row["world"], row["images"], row["phones"]


def _columns(rows: Iterable[Row]) -> list[tuple[str, float]]:
    """Return what labels are known at which ε, with noise first."""
    return list(product(KNOWN, sorted({row["epsilon"] for row in rows}, reverse=True)))


def _part(rows: Iterable[Row], part: str) -> Mapping[str, Any]:
    """Return a part's gains in points over the shipped layer, by what is known and ε: among all classes, own ones."""
    own = where(rows, part=part)
    gains = {
        (known, epsilon): [
            measured(row[among] - row[f"shipped_{among}"] for row in where(own, known=known, epsilon=epsilon))
            for among in ("all", "own")
        ]
        for known, epsilon in _columns(rows)
    }
    noise = measured(row["noise"] / row["signal"] for row in where(own, known="corrections") if row["noise"])
    return {"words": PARTS[part].words, "rows": own, "gains": gains, "noise": noise}
