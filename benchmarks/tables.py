"""Figures over seeds, and tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fedcaptor.simulations.sweep import half_width


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over `count` seeds; the deviation of one seed is unknown: NaN."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        values = list(values)
        return cls(fmean(values), stdev(values) if len(values) > 1 else math.nan, len(values))

    @property
    def told_from_zero(self) -> bool:
        """Tell whether the 95 % confidence interval of the mean (Student's t) leaves out zero; one seed never tells."""
        return abs(self.mean) > self.half_width

    @property
    def half_width(self) -> float:
        """Return that of the interval; infinite for one seed."""
        if self.count < 2:
            return math.inf
        return half_width(self.deviation, self.count)

    def text(self, scale: float = 1.0, digits: int = 1, sign: bool = False) -> str:
        """Write `94.7 ± 0.3`, or the mean alone of one seed."""
        mean = f"{self.mean * scale:{'+' if sign else ''}.{digits}f}".replace("-", "−")
        return mean if math.isnan(self.deviation) else f"{mean} ± {self.deviation * scale:.{digits}f}"


def measured(values: Iterable[float | None]) -> Spread | None:
    """Summarise those that were measured; None where none was."""
    found = [value for value in values if value is not None]
    return Spread.of(found) if found else None


def reach(values: Iterable[int]) -> str:
    """Write `2 to 5`, or `3` where all are alike; a dash where there is none."""
    found = sorted(values)
    return " to ".join(map(str, dict.fromkeys((found[0], found[-1])))) if found else "–"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a Markdown table, its first column to the left, the others to the right."""
    lines = [header, [":--"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
