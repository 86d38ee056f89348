"""What liars do: a table for one sum and for each size of cohort, what was measured within its limit, a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.charts import Chart, Line, Panel
from benchmarks.pages.section import Section
from benchmarks.record import Record, Row
from benchmarks.tables import Spread, measured, reach, table
from fedcaptor.server.plausible import tolerated

COLUMNS = (
    "attack, liars",
    "sums discarded, %",
    "runs ended",
    "centroid error, bits",
    "… against no noise",
    "clusters",
    "images of served classes, %",
    "cluster's submodel, %",
    "… against no liars, points",
    "MACs, %",
)
INTRODUCTION = """\
{data} images, {model}; {phones:,} phones, ε = {epsilon:g} at δ = {delta:g} for a whole run. *One sum*: what the server
does. *Median*: not built into the server. Phones are split at random into cohorts, each with a sum of its own with the
noise that it needs for the same ε; sums are held to the same bound (`server/plausible.py`), and the median of
each entry over those that are kept, times the number of cohorts, stands for the sum. A median withstands liars while
more than half of the cohorts hold none (`tolerated`); rows at or above that share say *beyond*.

Liars poison usage and filter scores. *One-class*: all weight on one class, in the block of the phone's own cluster;
in scores, no filter better than another for it. *Sign-flip*: minus the honest vector. Both are within the clip.
*Unclipped*: liars who know all honest vectors of their sum send the largest flat vector (each entry alike) that is all
but never discarded. *Overshoot*: each sends ten times what its whole cohort may weigh; integers wrap around, so such a
sum can come to lie within the bound. The run ends when every sum of a question is discarded; other figures are of the
runs that went on.

*Centroid error*: Jensen-Shannon divergence of the centroid that a phone finds nearest from the one that it would find
in the same run without liars; *against no noise*: in one sum without liars and noise; mean over phones.
Medians are noisy, so any change leads to other clusters: there the former is large for the smallest lie. *Images of
served classes*: of {judged} honest phones, the same in all rows, those of a class that the cluster's submodel can name;
a centroid that is like all others serves more classes, each of them worse at the same MACs.
*Cluster's submodel*: its accuracy on own classes' images, all its classes allowed; *against no liars*: in the same sums
of the same seeds. Submodels are planned from {planner_images} reference images, filters' profiles come from reference
images. Mean ± standard deviation over seeds."""


def render(record: Record) -> Section:
    """A table an aggregate."""
    settings = record.settings
    full = Spread.of({row["seed"]: row["accuracy_full_limited"] for row in record.rows}.values())
    parts = [
        INTRODUCTION.format(**settings),
        f"Seeds {', '.join(map(str, sorted(record.distinct('seed'))))}. The full model, limited to the owner's true "
        f"classes: {full.text(100)} %.",
    ]
    for name in record.distinct("aggregate"):
        rows = record.select(aggregate=name)
        lies = dict.fromkeys((row["attack"], row["liars"]) for row in rows)
        parts += [_title(name), table(COLUMNS, [_line(rows, name, *lie) for lie in lies])]
    parts.append("\n".join(_verdict(record, name) for name in record.distinct("aggregate")))
    return Section("What liars do", "\n\n".join(parts), {"poisoning": _chart(record)})


def limit(name: str) -> float:
    """Share of liars that an aggregate withstands."""
    return tolerated(int(name.rpartition(" ")[2])) if name != "sum" else 0.0


def _title(name: str) -> str:
    if name == "sum":
        return "### One sum"
    return f"### {name.capitalize()} phones: withstands fewer than {100 * limit(name):.2f} %"


def _select(rows: Sequence[Row], attack: str, liars: float) -> list[Row]:
    return [row for row in rows if (row["attack"], row["liars"]) == (attack, liars)]


def _spread(rows: Sequence[Row], figure: str) -> Spread | None:
    """None where nothing was measured."""
    return measured(row[figure] for row in rows)


def _line(rows: Sequence[Row], name: str, attack: str, liars: float) -> list[str]:
    honest = {row["seed"]: row["accuracy"] for row in _select(rows, "none", 0.0)}
    rows = _select(rows, attack, liars)
    cost = measured(None if row["accuracy"] is None else row["accuracy"] - honest[row["seed"]] for row in rows)

    def mean(figure: str, scale: float = 100, digits: int = 1) -> str:
        spread = _spread(rows, figure)
        return spread.text(scale, digits) if spread else "–"

    beyond = " (beyond)" if name != "sum" and liars >= limit(name) else ""
    return [
        f"{attack}, {100 * liars:g} %{beyond}" if liars else "none",
        mean("discarded"),
        f"{sum(row['clusters'] is None for row in rows)} of {len(rows)}",
        mean("centroid_error", 1, 3),
        mean("error_exact", 1, 3),
        reach(row["clusters"] for row in rows if row["clusters"] is not None),
        mean("served"),
        mean("accuracy"),
        cost.text(100, sign=True) if cost and liars else "–",
        mean("macs_ratio"),
    ]


def _verdict(record: Record, name: str) -> str:
    """The attack that moves centroids most, within the limit and beyond it."""
    rows = [row for row in record.select(aggregate=name) if row["error_exact"] is not None]
    honest = _spread(_select(rows, "none", 0.0), "error_exact")
    within = [row for row in rows if 0 < row["liars"] < limit(name)]
    beyond = [row for row in rows if row["liars"] >= max(limit(name), 1e-9)]
    parts = [f"{honest.text(1, 3)} bits from no noise without liars"] if honest else []
    for word, part in (("within its limit", within), ("beyond it" if name != "sum" else "with liars", beyond)):
        lies = dict.fromkeys((row["attack"], row["liars"]) for row in part)
        spreads = [(spread, lie) for lie in lies if (spread := _spread(_select(part, *lie), "error_exact"))]
        if spreads:
            worst, (attack, liars) = max(spreads, key=lambda found: found[0].mean)
            parts.append(f"at worst {worst.text(1, 3)} {word}, {attack} by {100 * liars:g} %")
    return f"- **{'One sum' if name == 'sum' else name.capitalize()}**: {'; '.join(parts)}."


def _chart(record: Record) -> Chart:
    shares = sorted(record.distinct("liars"))
    attacks = [attack for attack in record.distinct("attack") if attack not in ("none", "overshoot")]

    def line(attack: str, name: str) -> Line:
        rows = record.select(aggregate=name)
        found = [_spread(_select(rows, attack if share else "none", share), "error_exact") for share in shares]
        spreads = [spread or Spread(math.nan, math.nan, 0) for spread in found]
        means, deviations = ([round(getattr(s, f), 4) for s in spreads] for f in ("mean", "deviation"))
        return Line(name, tuple(means), tuple(deviations))

    def panel(attack: str) -> Panel:
        lines = tuple(line(attack, name) for name in record.distinct("aggregate"))
        return Panel(
            attack, "liars, %", "centroid error against no noise", tuple(f"{100 * s:g}" for s in shares), lines
        )

    return Chart("What liars do", tuple(panel(attack) for attack in attacks))
