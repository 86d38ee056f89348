"""Local answers against masked sums: a table by phones and ε, and which of the two is told to be nearer."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.pages.section import Section
from benchmarks.record import Record, Row
from benchmarks.tables import Spread, table

COLUMNS = ("", "distance", "masked", "local", "error", "masked", "local", "clusters", "masked", "local")
ARMS = ("unprotected", "masked", "local")
INTRODUCTION = """\
What trusting nobody costs. {groups} groups of owners with 2 to 4 of {classes} classes each (`simulations/habits.py`),
usage vectors alone, no images; all phones answer. *Masked*: `privacy.sums = "masked"`, δ = 10⁻⁵, default shares of ε,
so filter scores and fleet figures are paid for too, and no cluster below {min_cohort} phones and two deviations.
*Local*: one answer a phone, δ = 0, nothing else collected, no least cohort. The first figure of three is of the same
clustering without any protection.

*Distance*: total variation between a phone's usage and its nearest published centroid, in percent, mean over phones.
*Error*: of a share in a centroid against the mean usage of the phones nearest to it, root mean square, in percentage
points. *Clusters*: published. Mean ± standard deviation over seeds."""
EXPLANATION = """\
What few phones gain from local answers is clusters: in masked sums the noise of a whole block and the least cohort
leave one or two of them. What error is left with many phones and a large ε is no noise: clusters are fitted as a
mixture, in which they overlap, while each phone takes the nearest centroid."""


def render(record: Record) -> Section:
    """One table, one verdict a row."""
    settings = sorted({(row["phones"], row["epsilon"]) for row in record.rows})
    lines, verdicts = [], []
    for phones, epsilon in settings:
        rows = record.select(phones=phones, epsilon=epsilon)
        name = f"{phones:,} phones, ε = {epsilon}"
        lines.append([name, *_cells(rows, "distance", 100), *_cells(rows, "error", 100), *_cells(rows, "clusters", 1)])
        verdicts.append(f"- **{name}**: {_verdict(rows)}")
    seeds = ", ".join(map(str, sorted(record.distinct("seed"))))
    told = (INTRODUCTION.format(**record.settings), f"Seeds {seeds}.", table(COLUMNS, lines), "\n".join(verdicts))
    return Section("Local answers and masked sums", "\n\n".join((*told, EXPLANATION)))


def _cells(rows: Sequence[Row], figure: str, scale: float) -> list[str]:
    return [Spread.of(row[f"{arm}_{figure}"] for row in rows).text(scale) for arm in ARMS]


def _verdict(rows: Sequence[Row]) -> str:
    """Paired over seeds."""
    more = Spread.of(row["local_distance"] - row["masked_distance"] for row in rows)
    said = f"distance with local answers {more.text(100, sign=True)} percentage points"
    if not more.told_from_zero:
        return f"{said}: not told apart."
    return f"{said}: {'farther' if more.mean > 0 else '**nearer**'}."
