"""What class moments cost: a row a number of classes."""

from __future__ import annotations

from benchmarks.pages.section import Section
from benchmarks.record import Record
from benchmarks.tables import table

COLUMNS = ("classes", "moments, MB", "as whole triangles, MB", "packing all, s", "curves of one usage, s")
INTRODUCTION = """\
Second moments of every class at every place of {model}, once a network; the removal curves of any {needed} needed
classes, in any proportion, are then linear algebra on a weighted sum, without a forward pass. Moments are synthetic,
the i-th variance of a layer falling as i^-{steepness:g}; each keeps the directions that hold {share:g} of its trace, in
half precision. *As whole triangles*: every covariance in half precision, without that. CPU seconds of one thread."""


def render(record: Record) -> Section:
    """One table."""
    lines = [
        [
            f"{row['classes']:,}",
            *(f"{row[name] / 1e6:,.0f}" for name in ("bytes", "triangle_bytes")),
            *(f"{row[name]:,.1f}" for name in ("packing_seconds", "curves_seconds")),
        ]
        for row in record.rows
    ]
    return Section("Class moments", f"{INTRODUCTION.format(**record.settings)}\n\n{table(COLUMNS, lines)}")
