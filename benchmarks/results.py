"""docs/results.md, from the stored rows alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.charts import draw
from benchmarks.pages import (
    fallback,
    federation,
    gradients,
    local_privacy,
    memory,
    moments,
    phone,
    poisoning,
    preference,
    private_vs_open,
    pruning,
    secure_sum,
    slicing,
)
from benchmarks.pages.section import Section
from benchmarks.record import Record, read_record
from fedcaptor.common.errors import StateError
from fedcaptor.common.files import replacing

PAGES: dict[str, Callable[[Record], Section]] = {
    "federation": federation.render,
    "private_vs_open": private_vs_open.render,
    "preference": preference.render,
    "pruning": pruning.render,
    "gradients": gradients.render,
    "fallback": fallback.render,
    "slicing": slicing.render,
    "moments": moments.render,
    "phone": phone.render,
    "memory": memory.render,
    "secure_sum": secure_sum.render,
    "local_privacy": local_privacy.render,
    "poisoning": poisoning.render,
}
"""Renderers by benchmark, in the order of the page. A further benchmark is one line here."""

HEAD = """\
# Results

Written by `make results` from the rows in `benchmarks/results`; do not edit by hand. A difference between two arms
counts when the 95 % confidence interval of its mean over seeds (Student's t) leaves out zero. Seconds hold for the
machine named.
"""


def sections(rows: Path) -> list[tuple[list[Record], Section]]:
    """A folder's records with their sections, in the page's order; those that differ in nothing but the machine make
    one section. Raises StateError for an unknown benchmark.
    """
    alike: dict[str, list[Record]] = {}
    for path in sorted(rows.glob("*.json")):
        record = read_record(path)
        if record.benchmark not in PAGES:
            raise StateError(f"{rows} has rows of {record.benchmark!r}, known are {', '.join(PAGES)}: remove its file")
        if record.rows:
            alike.setdefault(json.dumps([record.benchmark, record.settings]), []).append(record)
    order = list(PAGES)
    found = sorted(alike.values(), key=lambda records: order.index(records[0].benchmark))
    return [(records, PAGES[records[0].benchmark](_joined(records))) for records in found]


def _joined(records: list[Record]) -> Record:
    return replace(records[0], rows=[row for record in records for row in record.rows])


def page(found: list[tuple[list[Record], Section]]) -> str:
    """The whole page."""
    contents = "".join(f"- [{section.title}](#{_anchor(section.title)})\n" for _, section in found)
    return "\n".join([HEAD, contents, *(_section(records, section) for records, section in found)])


def write_results(rows: Path, docs: Path) -> Path:
    """Write the page and its figures; figures that no section has any more stay where they are."""
    found = sections(rows)
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    for _, section in found:
        for name, chart in section.charts.items():
            draw(chart, docs / "figures" / f"{name}.svg")
    with replacing(docs / "results.md") as temporary:
        temporary.write_text(page(found))
    return docs / "results.md"


def _section(records: list[Record], section: Section) -> str:
    parts = [f"## {section.title}"]
    for record in records:
        parts.append("\n".join(["```", *record.commands, "```", f"Made on {_machine(record.machine)}."]))
    parts += [f"![{chart.title}](figures/{name}.svg)" for name, chart in section.charts.items()]
    return "\n\n".join([*parts, f"{section.text}\n"])


def _anchor(title: str) -> str:
    """Of a heading, as renderers of Markdown make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _machine(machine: Mapping[str, object]) -> str:
    return f"{machine['cores']} cores of {machine['cpu']}, Python {machine['python']}, torch {machine['torch']}"
