"""docs/results.md, from the stored rows alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.charts import draw
from benchmarks.pages import (
    catalogue,
    corrections,
    fallback,
    federation,
    gradients,
    local_privacy,
    many_classes,
    on_device,
    poisoning,
    private_vs_open,
    pruning,
)
from benchmarks.pages.section import Section, filled, section
from benchmarks.record import Record, read_record
from fedcaptor.common.errors import StateError
from fedcaptor.common.files import replacing

PAGES: dict[str, Callable[[Record], Section]] = {
    "federation": federation.render,
    "looks": partial(section, "looks"),
    "many_classes": many_classes.render,
    "corrections": corrections.render,
    "heterofl": partial(section, "heterofl"),
    "private_vs_open": private_vs_open.render,
    "preference": partial(section, "preference"),
    "pruning": pruning.render,
    "gradients": gradients.render,
    "fallback": fallback.render,
    "slicing": partial(section, "slicing"),
    "moments": partial(section, "moments"),
    "phone": partial(section, "phone"),
    "personal_step": partial(section, "personal_step"),
    "phone_client": partial(section, "phone_client"),
    "fleet": partial(section, "fleet"),
    "chaos": partial(section, "chaos"),
    "on_device": on_device.render,
    "eight_bits": partial(section, "eight_bits"),
    "memory": partial(section, "memory"),
    "catalogue": catalogue.render,
    "secure_sum": partial(section, "secure_sum"),
    "local_privacy": local_privacy.render,
    "poisoning": poisoning.render,
    "look_poisoning": partial(section, "look_poisoning"),
}
"""How a benchmark's record becomes a section, in the order of the page; some are a template and no code."""


def sections(rows: Path) -> list[tuple[list[Record], Section]]:
    """Return a folder's records with their sections, in the page's order; those that differ in nothing but the
    machine make one section. Raises StateError for an unknown benchmark.
    """
    alike: dict[str, list[Record]] = {}
    for path in sorted(rows.glob("*.json")):
        record = read_record(path)
        if record.benchmark not in PAGES:
            raise StateError(f"{rows} has rows of {record.benchmark!r}, known are {', '.join(PAGES)}: remove its file")
        if record.rows:
            alike.setdefault(json.dumps([record.benchmark, record.settings], sort_keys=True), []).append(record)
    order = list(PAGES)
    found = sorted(alike.values(), key=lambda records: order.index(records[0].benchmark))
    return [(records, PAGES[records[0].benchmark](_joined(records))) for records in found]


def _joined(records: list[Record]) -> Record:
    return replace(records[0], rows=[row for record in records for row in record.rows])


def page(found: list[tuple[list[Record], Section]]) -> str:
    """Return the whole page."""
    return filled("results", found=found, anchor=_anchor) + "\n"


def write_results(rows: Path, docs: Path) -> Path:
    """Write the page and its figures; figures that no section has any more stay where they are."""
    found = sections(rows)
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    for _, part in found:
        for name, chart in part.charts.items():
            draw(chart, docs / "figures" / f"{name}.svg")
    with replacing(docs / "results.md") as temporary:
        temporary.write_text(page(found))
    return docs / "results.md"


def _anchor(title: str) -> str:
    """Return the anchor of a heading, as renderers of Markdown make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
