"""What federation brings: a table for each number of images, and what was not worth it."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.charts import Chart, Line, Panel
from benchmarks.pages.section import Section
from benchmarks.record import Record, Row
from benchmarks.tables import Spread, table

NAMES = {
    "alone": "a phone alone",
    "reference": "+ reference images",
    "clusters": "+ private usage clusters",
    "scores": "+ private filter scores",
    "one-for-all": "one submodel for all, limited to own classes",
}
STEPS = (
    ("alone", "reference"),
    ("reference", "clusters"),
    ("clusters", "scores"),
    ("alone", "scores"),
    ("one-for-all", "scores"),
)
COLUMNS = (
    "",
    "accuracy, %",
    "5th percentile, %",
    "effective MACs, %",
    "MACs, %",
    "keep the full model, %",
    "download, kB",
    "personal step, CPU s",
    "private sums, CPU s",
)
INTRODUCTION = """\
{phones} simulated phones, embedded images, {model}; ε = {epsilon:g} and δ = {delta:g} a run, the same in every arm;
cohorts of at least {min_cohort}. Each arm has what the one above it has, and one part more, on the same seeds, phones
and MACs ladder ({ladder}). *A phone alone* has its own images: no reference images, no plans, no usage prior, no filter
scores. *+ private usage clusters*: the centroid as prior, and the cluster's plan to fall back on. *+ private filter
scores*, joined with the server's pictures of filters, is the shipped configuration. *One submodel for all* is made by
the server for all classes alike within {macs:g} of the MACs; it answers every image by itself, among the classes that
the phone takes for its own, or unlimited.

Accuracy is the simulator's, on the owner's own classes; the mean and 5th percentile are over phones, ± is the standard
deviation over seeds. Effective MACs count images that go on to the full model. The download is the delivery alone, on
top of the base model: plans, filter scores, reference images, or the shared submodel. CPU seconds are a phone's, in one
thread."""


def render(record: Record) -> Section:
    """Tables, verdicts and one chart."""
    ladder = ", ".join(f"{ratio:g}" for ratio in record.settings["ladder"])
    parts = [INTRODUCTION.format(**{**record.settings, "ladder": ladder})]
    for images in record.distinct("images"):
        rows = record.select(images=images)
        seeds = sorted({row["seed"] for row in rows})
        parts += [
            f"### {images} images a phone",
            f"Seeds {', '.join(map(str, seeds))}. Preference clusters published: {_clusters(rows)}.",
            table(COLUMNS, _lines(rows)),
            "\n".join(_verdicts(rows)),
        ]
    return Section("What federation brings", "\n\n".join(parts), {"federation": _chart(record)})


def _clusters(rows: Sequence[Row]) -> str:
    """How many clusters the arms that use them had, over seeds."""
    counts = sorted({row["clusters"] for row in rows if row["arm"] in ("clusters", "scores")})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "–"


def _over_seeds(rows: Sequence[Row], arm: str, figure: str) -> Spread:
    return Spread.of(row[figure] for row in rows if row["arm"] == arm)


def _lines(rows: Sequence[Row]) -> list[list[str]]:
    """Table rows: the full model, then the arms that were measured."""
    present = [arm for arm in NAMES if any(row["arm"] == arm for row in rows)]
    lines = []
    for name, figure in (("full model", "full"), ("full model limited to the true classes", "full_limited")):
        accuracy = [_over_seeds(rows, present[0], f).text(100) for f in (figure, f"{figure}_p5")]
        lines.append([name, *accuracy, "100.0", "100.0", "100.0", "–", "–", "–"])
    for arm in present:
        lines.append([NAMES[arm], *_figures(rows, arm, "accuracy")])
    if "one-for-all" in present:
        lines.append(["one submodel for all, unlimited", *_figures(rows, "one-for-all", "unlimited")])
    return lines


def _figures(rows: Sequence[Row], arm: str, accuracy: str) -> list[str]:
    percent = (accuracy, f"{accuracy}_p5", "effective_macs", "macs", "kept_full")
    return [
        *(_over_seeds(rows, arm, figure).text(100) for figure in percent),
        _over_seeds(rows, arm, "download_bytes").text(1e-3),
        _over_seeds(rows, arm, "personal_seconds").text(1, 2),
        _over_seeds(rows, arm, "sums_seconds").text(1, 2),
    ]


def _verdicts(rows: Sequence[Row]) -> list[str]:
    """A line for each step between arms, from differences within seeds."""
    lines = []
    for before, after in STEPS:
        accuracy, worst, macs = (
            _difference(rows, before, after, figure) for figure in ("accuracy", "accuracy_p5", "effective_macs")
        )
        if accuracy and worst and macs:
            name = f"all parts over {NAMES[before]}" if after == "scores" and before != "clusters" else NAMES[after]
            lines.append(
                f"- **{name}**: accuracy {accuracy.text(100, sign=True)} points, 5th percentile "
                f"{worst.text(100, sign=True)}, effective MACs {macs.text(100, sign=True)}: "
                f"{_verdict([accuracy, worst], [macs])}."
            )
    return lines


def _difference(rows: Sequence[Row], before: str, after: str, figure: str) -> Spread | None:
    """`after` minus `before` over the seeds that have both."""
    values = {arm: {row["seed"]: row[figure] for row in rows if row["arm"] == arm} for arm in (before, after)}
    both = [seed for seed in values[before] if seed in values[after]]
    return Spread.of(values[after][s] - values[before][s] for s in both) if both else None


def _verdict(more: Sequence[Spread], less: Sequence[Spread]) -> str:
    """What the differences say; `more`: figures to be raised, `less`: to be lowered."""
    if any(spread.count < 2 for spread in (*more, *less)):
        return "one seed, not told from chance"
    told = [s.mean for s in more if s.told_from_zero] + [-s.mean for s in less if s.told_from_zero]
    if not told:
        return "**brought nothing** that these seeds tell from chance"
    if all(value > 0 for value in told):
        return "better"
    return "**worse**" if all(value < 0 for value in told) else "**a trade**, better in one figure and worse in another"


def _chart(record: Record) -> Chart:
    images = sorted(record.distinct("images"))

    def line(label: str, arm: str, figure: str, reference: bool = False) -> Line:
        spreads = [_over_seeds(record.select(images=n), arm, figure) for n in images]
        means, deviations = ([round(100 * getattr(s, f), 3) for s in spreads] for f in ("mean", "deviation"))
        return Line(label, tuple(means), tuple(deviations), reference)

    complete = [a for a in NAMES if all(any(r["arm"] == a for r in record.select(images=n)) for n in images)]
    accuracy = [line(NAMES[arm], arm, "accuracy") for arm in complete]
    for label, figure in (("full model", "full"), ("full model, true classes", "full_limited")):
        accuracy += [line(label, arm, figure, reference=True) for arm in complete[:1]]
    macs = [line(NAMES[arm], arm, "effective_macs") for arm in complete]
    categories = tuple(map(str, images))
    below = "images a phone learns from"
    return Chart(
        "What federation brings",
        (
            Panel("Accuracy on own classes", below, "%", categories, tuple(accuracy)),
            Panel("Effective MACs", below, "% of the full model", categories, tuple(macs)),
        ),
    )
