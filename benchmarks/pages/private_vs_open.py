"""What privacy costs: a table by population and ε, differences from no noise paired over seeds, and a chart."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.charts import Chart, Line, Panel
from benchmarks.pages.section import Section
from benchmarks.record import Record, Row
from benchmarks.tables import Spread, measured, reach, table

GOALS = ((8.0, 1000), (2.0, 10000))
MARGIN = 0.005
COLUMNS = (
    "",
    "clusters",
    "centroid error, bits",
    "images of served classes, %",
    "cluster's submodel, %",
    "… against no noise",
    "… own classes alone, %",
    "MACs, %",
    "personal, %",
    "… against no noise",
    "MACs, %",
    "effective MACs, %",
)
INTRODUCTION = """\
{data} images, {model}; δ = {delta:g}, cohorts of at least {min_cohort}, {corrupted:g} of the phones allowed to side
with the server. ε is that of a whole run. All of a population answer every sum; sums hold the very vectors, clipped,
rotated and quantised, and the noise that masked ones would (masks cancel to the bit), but no message is sent. Of each
seed {drawn:,} phones are drawn, smaller populations are the first of these.

Judged on own classes' test images, which the simulator alone reads: the first {judged:,} phones of each seed, the same
for every ε and population; those that a smaller population does not have only fetch what it led to. *Cluster's
submodel*: what the server made for the cluster that a phone finds nearest, all its classes allowed; *own classes
alone*: its answers limited to what the phone takes for its owner's. It is no phone's last model: *personal* is, after
the personal step, with what it leaves to the full model (*effective MACs*), on the first {personal} phones. *Centroid
error*: Jensen-Shannon divergence of the nearest published centroid from the one without noise, mean over phones. ± is
the standard deviation over seeds, of differences within seeds."""


def render(record: Record) -> Section:
    """One table a population, verdicts on the goals, a chart."""
    full = [Spread.of(row[name] for row in _once(record.rows)) for name in ("accuracy_full", "accuracy_full_limited")]
    parts = [
        INTRODUCTION.format(**record.settings),
        f"Seeds {', '.join(map(str, sorted(record.distinct('seed'))))}. The full model: {full[0].text(100)} %; limited "
        f"to the owner's true classes: {full[1].text(100)} %.",
    ]
    for phones in sorted(record.distinct("phones")):
        rows = record.select(phones=phones)
        parts += [f"### {phones:,} phones", table(COLUMNS, [_line(rows, epsilon) for epsilon in _epsilons(rows)])]
    verdicts = [line for epsilon, phones in GOALS for line in _verdicts(record.select(phones=phones), epsilon, phones)]
    if verdicts:
        parts.append("\n".join(verdicts))
    return Section("What privacy costs", "\n\n".join(parts), {"private-vs-open": _chart(record)})


def _once(rows: Sequence[Row]) -> list[Row]:
    """A row a seed: the full model's figures are the same in all."""
    return list({row["seed"]: row for row in rows}.values())


def _epsilons(rows: Sequence[Row]) -> list[float | None]:
    """Falling, no noise first."""
    found = {row["epsilon"] for row in rows}
    return [None] * (None in found) + sorted((e for e in found if e is not None), reverse=True)


def _name(epsilon: float | None) -> str:
    return "no noise" if epsilon is None else f"ε = {epsilon:g}"


def _over_seeds(rows: Sequence[Row], epsilon: float | None, figure: str) -> Spread | None:
    """None where it was not measured."""
    return measured(row[figure] for row in rows if row["epsilon"] == epsilon)


def _differences(rows: Sequence[Row], epsilon: float | None, figure: str) -> list[float]:
    """From no noise, seed by seed."""
    exact = {row["seed"]: row[figure] for row in rows if row["epsilon"] is None and row[figure] is not None}
    noisy = {row["seed"]: row[figure] for row in rows if row["epsilon"] == epsilon and row[figure] is not None}
    return [noisy[seed] - exact[seed] for seed in noisy if seed in exact]


def _line(rows: Sequence[Row], epsilon: float | None) -> list[str]:
    def mean(figure: str, scale: float = 100, digits: int = 1) -> str:
        spread = _over_seeds(rows, epsilon, figure)
        return spread.text(scale, digits) if spread else "–"

    def against(figure: str) -> str:
        differences = _differences(rows, epsilon, figure) if epsilon is not None else []
        return Spread.of(differences).text(100, 2, sign=True) if differences else "–"

    return [
        _name(epsilon),
        reach(row["clusters"] for row in rows if row["epsilon"] == epsilon),
        mean("centroid_error", 1, 4),
        mean("served"),
        mean("accuracy"),
        against("accuracy"),
        mean("accuracy_limited"),
        mean("macs_ratio"),
        mean("accuracy_personal"),
        against("accuracy_personal"),
        mean("macs_personal"),
        mean("macs_effective"),
    ]


def _verdicts(rows: Sequence[Row], epsilon: float, phones: int) -> list[str]:
    """Whether the accuracy lost is within the margin, for both models."""
    lines = []
    for name, figure, macs in (
        ("cluster's submodel", "accuracy", "macs_ratio"),
        ("personal submodel", "accuracy_personal", "macs_personal"),
    ):
        lost, compute = _differences(rows, epsilon, figure), _differences(rows, epsilon, macs)
        if lost:
            spread = Spread.of(lost)
            word = "within" if spread.mean >= -MARGIN else "**not within**"
            if word == "within" and spread.mean - spread.half_width < -MARGIN:
                word = "on average within, these seeds do not rule out more than"
            least, ratio = Spread.of([min(lost)]).text(100, 2, sign=True), Spread.of(compute).text(100, 2, sign=True)
            lines.append(
                f"- **ε = {epsilon:g}, {phones:,} phones, {name}**: {spread.text(100, 2, sign=True)} points against no "
                f"noise (worst seed {least}), at {ratio} points of MACs: {word} {100 * MARGIN:g} points."
            )
    return lines


def _chart(record: Record) -> Chart:
    populations, epsilons = sorted(record.distinct("phones")), _epsilons(record.rows)

    def line(epsilon: float | None, figure: str) -> Line:
        found = [_over_seeds(record.select(phones=n), epsilon, figure) for n in populations]
        spreads = [spread or Spread(float("nan"), float("nan"), 0) for spread in found]
        means, deviations = ([round(100 * getattr(s, f), 3) for s in spreads] for f in ("mean", "deviation"))
        return Line(_name(epsilon), tuple(means), tuple(deviations), reference=epsilon is None)

    def panel(title: str, figure: str) -> Panel:
        lines = tuple(line(epsilon, figure) for epsilon in epsilons)
        return Panel(title, "phones", "% on own classes", tuple(f"{n:,}" for n in populations), lines)

    panels = [panel("Cluster's submodel", "accuracy")]
    if any(row["accuracy_personal"] is not None for row in record.rows):
        panels.append(panel("Personal submodel", "accuracy_personal"))
    return Chart("What privacy costs", tuple(panels))
