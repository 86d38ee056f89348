"""What the personal step costs a phone: a row a model and number of images."""

from __future__ import annotations

from benchmarks.pages.section import Section
from benchmarks.record import Record, Row
from benchmarks.tables import table

COLUMNS = ("", "images", "evidence, s", "submodel, s", "together, s", "memory on top, MB", "process before, MB")
INTRODUCTION = """\
Evidence for {needed} classes from images of {size}, at most {rows} observations a layer as phones take by default, then
one submodel of at most {macs:g} of the MACs, in a process of its own with one thread. Seconds are CPU seconds. *Memory
on top*: how far the peak of the process rose during the step; *before*: PyTorch and the loaded, traced full model. A
phone tries as many submodels as its ladder has rungs, until one agrees well enough; evidence is gathered once."""


def render(record: Record) -> Section:
    """One table."""
    size = "×".join(map(str, record.settings["shape"][1:]))
    text = INTRODUCTION.format(**{**record.settings, "size": size})
    return Section("The personal step on one core", f"{text}\n\n{table(COLUMNS, map(_line, record.rows))}")


def _line(row: Row) -> list[str]:
    evidence, submodel = row["evidence_seconds"], row["submodel_seconds"]
    return [
        row["model"],
        str(row["images"]),
        *(f"{seconds:.1f}" for seconds in (evidence, submodel, evidence + submodel)),
        *(f"{row[name] / 1e6:.0f}" for name in ("added_rss_bytes", "loaded_rss_bytes")),
    ]
