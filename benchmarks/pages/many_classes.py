"""Which classes owners meet next: a line for each fleet and each thing that a phone may know."""

from __future__ import annotations

from benchmarks.pages.section import Section, section
from benchmarks.record import Record

ARMS = {
    "alone": "a phone alone",
    "kmeans": "the nearest of the fleet's clusters",
    "topics": "the owner's mixture of the fleet's topics",
    "topics_open": "the same, topics without noise",
    "true": "the owner's true habits",
}


def render(record: Record) -> Section:
    rows = [
        {"arm": ARMS[arm], **{key: row[key] for key in ("images", "phones", "epsilon", "seed")}, **row["arms"][arm]}
        for arm in ARMS
        for row in record.rows
    ]
    return section("many_classes", record, cases=rows, arms=list(ARMS.values()))
