"""The section about latency, memory and energy of pruned networks, and what it says of the shape of the figures."""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import Any

from benchmarks.pages.section import Section, section
from benchmarks.record import Record, Row

MOST = {"vgg16": 1.15}
"""How much more of the time than of the MACs should be left at most, by network; of others `MOST_OF_OTHERS`."""
MOST_OF_OTHERS = 1.3


def render(record: Record) -> Section:
    """Return the section."""
    rows = [row for row in record.rows if "runtime" in row]
    full = {_program(row): row for row in rows if row["macs_target"] == 1}
    lines = [{**row, **_beside(row, full[_program(row)])} for row in rows if _program(row) in full]
    reported = [row for row in record.rows if "reported" in row]
    return section("on_device", record, lines=lines, reported=reported, verdicts=_verdicts(lines))


def _program(row: Row) -> tuple[Any, ...]:
    return row["model"], row["runtime"], row["precision"]


def _beside(row: Row, full: Row) -> Row:
    """Return a row's name, its time over its MACs, and its memory: what the process has beyond its libraries."""
    added, of_full = (each["peak_rss_bytes"] - each["loaded_rss_bytes"] for each in (row, full))
    name = row["model"].rpartition(":")[2].rpartition("/")[2]
    return {
        "name": name,
        "beyond": row["latency_ratio"] / row["macs_ratio"],
        "memory": added,
        "memory_ratio": added / of_full,
    }


def _verdicts(lines: list[Row]) -> list[str]:
    """Say of each network's pruned versions how much slower they are than their MACs, and whether any is in vain."""
    found = []
    keys = ("name", "runtime", "precision", "multiple")
    pruned = [line for line in lines if line["macs_target"] < 1]
    for told, own in groupby(pruned, key=lambda line: [line[key] for key in keys]):
        some = sorted(own, key=lambda line: -line["macs_ratio"])
        beyond, most = [line["beyond"] for line in some], MOST.get(told[0], MOST_OF_OTHERS)
        over = sum(each > most for each in beyond)
        slower = sum(small["latency_ratio"] > large["latency_ratio"] for large, small in pairwise(some))
        text = f"{told[0]}, {told[1]} {told[2]}, multiples of {told[3]}: {min(beyond):.2f} to {max(beyond):.2f} times"
        text += " its MACs ratio, " + (f"{over} of {len(some)} above {most:g}" if over else f"all within {most:g}")
        found.append(text + (f"; {slower} slower than the next larger" if slower else ""))
    return found
