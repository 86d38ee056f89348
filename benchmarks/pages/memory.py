"""Peak memory of whole simulations: a row a number of phones."""

from __future__ import annotations

from benchmarks.pages.section import Section
from benchmarks.record import Record
from benchmarks.tables import table

COLUMNS = ("phones", "peak, MB", "over the first row", "CPU, s")
INTRODUCTION = """\
A whole `fedcaptor simulate`, libraries and report included, in a process of its own; its peak is what the operating
system says. Little work a phone, for what matters is their number: `{overrides}`."""


def render(record: Record) -> Section:
    """One table."""
    rows = sorted(record.rows, key=lambda row: row["phones"])
    lines = [
        [
            f"{row['phones']:,}",
            f"{row['peak_rss_bytes'] / 1e6:,.0f}",
            f"{row['peak_rss_bytes'] / rows[0]['peak_rss_bytes']:.2f}",
            f"{row['cpu_seconds']:,.0f}",
        ]
        for row in rows
    ]
    text = INTRODUCTION.format(overrides=" ".join(record.settings["overrides"]))
    return Section("Memory by number of phones", f"{text}\n\n{table(COLUMNS, lines)}")
