"""What a benchmark adds to docs/results.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.charts import Chart


@dataclass(frozen=True, eq=False)
class Section:
    """`text`: Markdown under the title, with its tables; `charts` by file name without ending, shown after it."""

    title: str
    text: str
    charts: Mapping[str, Chart] = field(default_factory=dict)
