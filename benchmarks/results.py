"""docs/results.md, from the stored rows alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.charts import draw
from benchmarks.pages import (
    fallback,
    federation,
    gradients,
    local_privacy,
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
from common.errors import StateError
from common.files import replacing

PAGES: dict[str, Callable[[Record], Section]] = {
    "federation": federation.render,
    "private_vs_open": private_vs_open.render,
    "preference": preference.render,
    "pruning": pruning.render,
    "gradients": gradients.render,
    "fallback": fallback.render,
    "slicing": slicing.render,
    "phone": phone.render,
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


def sections(rows: Path) -> list[tuple[Record, Section]]:
    """All records of a folder with their sections, in the page's order. Raises StateError for an unknown benchmark."""
    records = [read_record(path) for path in sorted(rows.glob("*.json"))]
    for record in records:
        if record.benchmark not in PAGES:
            raise StateError(f"{rows} has rows of {record.benchmark!r}, known are {', '.join(PAGES)}: remove its file")
    order = list(PAGES)
    records.sort(key=lambda record: order.index(record.benchmark))
    return [(record, PAGES[record.benchmark](record)) for record in records if record.rows]


def page(found: list[tuple[Record, Section]]) -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_section(record, section) for record, section in found)])


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


def _section(record: Record, section: Section) -> str:
    commands = "\n".join(record.commands)
    charts = "".join(f"![{chart.title}](figures/{name}.svg)\n\n" for name, chart in section.charts.items())
    return (
        f"## {section.title}\n\n```\n{commands}\n```\nMade on {_machine(record.machine)}.\n\n{charts}{section.text}\n"
    )


def _machine(machine: Mapping[str, object]) -> str:
    return f"{machine['cores']} cores of {machine['cpu']}, Python {machine['python']}, torch {machine['torch']}"
