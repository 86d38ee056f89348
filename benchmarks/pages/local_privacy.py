"""Local answers against masked sums: figures by phones and ε, and which of the two is told to be nearer."""

from __future__ import annotations

from benchmarks.pages.rows import where
from benchmarks.pages.section import Section, section
from benchmarks.record import Record
from benchmarks.tables import Spread


def render(record: Record) -> Section:
    """Make one table, one verdict a row, paired over seeds."""
    runs = []
    for phones, epsilon in sorted({(row["phones"], row["epsilon"]) for row in record.rows}):
        rows = where(record.rows, phones=phones, epsilon=epsilon)
        more = Spread.of(row["local_distance"] - row["masked_distance"] for row in rows)
        runs.append({"name": f"{phones:,} phones, ε = {epsilon}", "rows": rows, "more": more})
    return section("local_privacy", record, runs=runs)
