"""What a benchmark adds to docs/results.md: a template, filled from the record."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.charts import Chart
from benchmarks.pages.rows import where
from benchmarks.record import Record, Row
from benchmarks.tables import Spread, measured, reach, table


@dataclass(frozen=True, eq=False)
class Section:
    """`text`: Markdown under the title, with its tables; `charts` by file name without ending, shown after it."""

    title: str
    text: str
    charts: Mapping[str, Chart] = field(default_factory=dict)


def section(template: str, record: Record, charts: Mapping[str, Chart] | None = None, **values: Any) -> Section:
    """Fill `templates/TEMPLATE.md.j2`, whose first line is the title, with the record's settings and rows."""
    title, _, text = filled(template, settings=record.settings, rows=record.rows, **values).partition("\n\n")
    return Section(title.removeprefix("## "), text, charts or {})


def filled(template: str, **values: Any) -> str:
    """Fill a template; however many lines its blocks leave empty, paragraphs are one apart."""
    return re.sub(r"\n{3,}", "\n\n", _ENVIRONMENT.get_template(f"{template}.md.j2").render(values)).strip("\n")


def _table(block: str) -> str:
    """Make a table of lines of cells between bars, the header first; an indented line goes on with the one above."""
    lines = re.sub(r"\n +\|", " |", block.strip("\n")).splitlines()
    header, *rows = ([cell.strip() for cell in line.split("|")] for line in lines if line.strip())
    return table(header, rows) + "\n"


def _mean(rows: Sequence[Row], figure: str, scale: float = 1.0, digits: int = 1) -> str:
    return _text(measured(row[figure] for row in rows), scale, digits)


def _text(spread: Spread | None, scale: float = 1.0, digits: int = 1, sign: bool = False) -> str:
    return spread.text(scale, digits, sign) if spread else "–"


def _pair(rows: Sequence[Row], arm: str) -> str:
    """Return the mean accuracies of an arm, among all classes and among an owner's."""
    means = (np.mean([row["arms"][arm][among] for row in rows]) for among in ("all", "own"))
    return " / ".join(f"{100 * mean:.1f}" for mean in means)


def _told(spread: Spread, more: str = "better", less: str = "worse", unknown: str = "not told from chance") -> str:
    return (more if spread.mean > 0 else less) if spread.told_from_zero else unknown


def _seeds(rows: Sequence[Row]) -> str:
    return ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))


def _reach(rows: Iterable[Row], figure: str) -> str:
    return reach(row[figure] for row in rows if row[figure] is not None)


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "number": format,
    "pair": _pair,
    "table": _table,
    "mean": _mean,
    "spread": Spread.of,
    "text": _text,
    "told": _told,
    "seeds": _seeds,
    "reach": _reach,
    "where": where,
}
