"""What costs no privacy: rank correlations with the preference without noise, a row for each way of making it."""

from __future__ import annotations

from benchmarks.pages.section import Section
from benchmarks.record import Record
from benchmarks.tables import Spread, table

INTRODUCTION = """\
How near the filter × class preference of noisy sums is to that of the same phones without noise, filter by filter:
Spearman's rank correlation of a layer's filters for a class, mean over layers and classes; mean ± standard deviation
over seeds {seeds}. {data} images, {model}; all phones answer, ε is that of a whole run, of which scores have their
configured share.

*Each filter*: scores are summed filter by filter; negative sums count as zero, unless kept; *low rank*: each layer's
noisy matrix is replaced by the nearest of rank 2. *Clusters*: pooled by filter clusters from pictures, eight a layer,
which makes the vector shorter and the noise of an entry count less; *not rotated*: rounded without rotation, in quanta
a sixteenth as large, which costs bits. *Shared out by pictures*: a cluster's score among its members as their pictures
say. *Joined*: with the pictures as the other half, each filter's row over its sum, as shipped with clusters; that tells
how a filter's classes compare, no longer how much the filter does for them, so its correlation is lower by itself."""


def render(record: Record) -> Section:
    """One table: variants by settings."""
    settings = sorted({(row["phones"], row["epsilon"]) for row in record.rows})
    header = ("", *(f"{phones:,} phones, ε = {epsilon}" for phones, epsilon in settings))
    lines = []
    for place, name in enumerate(record.settings["variants"]):
        rows = (record.select(phones=phones, epsilon=epsilon) for phones, epsilon in settings)
        lines.append([name, *(Spread.of(row["correlations"][place] for row in part).text(1, 2) for part in rows)])
    seeds = ", ".join(map(str, sorted(record.distinct("seed"))))
    told = INTRODUCTION.format(**record.settings, seeds=seeds)
    return Section("What costs no privacy", f"{told}\n\n{table(header, lines)}")
