"""Gradient scores against the measured effect of closing filters: a table and a chart a number of classes."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.charts import Chart, Line, Panel
from benchmarks.pages.pruning_rows import draw_of
from benchmarks.pages.section import Section
from benchmarks.record import Record, Row
from benchmarks.tables import Spread, table

NAMES = {
    "taylor": "abs(Σ a·g), Taylor",
    "signed-taylor": "−Σ a·g, signed",
    "map-gradient": "Σ abs(g) on the map",
    "weight-gradient": "Σ abs(g) on the weights",
    "l1": "Σ abs(w), no gradient",
}
EFFECTS = {"correlation_size": "size of the effect", "correlation": "rise in the mean loss"}
INTRODUCTION = """\
{model}: Spearman's rank correlation of each score with what closing one filter does, inside a layer, {filters} random
filters a layer. Scores: {images} unlabelled training images of each needed class, the model's answers among them for
labels; a is the filter's map as the next layers read it, w its weights, g the gradient of an image's cross-entropy
there; sums over the map or the weights, mean over the images of a class, the same say for all needed classes. Effect:
on {held} test images of each needed class, with true labels; its *size* is the mean over images of the absolute change
in an image's cross-entropy, the *rise* is the change in the mean. Mean ± standard deviation over draws of the mean over
layers; in brackets the standard deviation over layers of the mean over draws."""


def render(record: Record) -> Section:
    """A section a model."""
    model = record.settings["model"]
    parts, charts = [INTRODUCTION.format(**record.settings)], {}
    slug = "".join(c if c.isalnum() else "-" for c in model)
    for size in sorted({len(row["classes"]) for row in record.rows}):
        rows = [row for row in record.rows if len(row["classes"]) == size]
        needed = f"{size} of {record.settings['outputs']} classes"
        parts += [
            f"### {needed}",
            f"Draws: {len({draw_of(row) for row in rows})}.",
            table(("", *EFFECTS.values()), _lines(rows)),
            "\n".join(_verdicts(rows)),
        ]
        charts[f"gradients-{slug}-{size}"] = _chart(rows, f"{model}, {needed}")
    return Section(f"Gradient scores of {model}", "\n\n".join(part for part in parts if part), charts)


def _lines(rows: Sequence[Row]) -> list[list[str]]:
    return [
        [NAMES[score], *(_cell([row for row in rows if row["score"] == score], effect) for effect in EFFECTS)]
        for score in _measured(rows)
    ]


def _cell(rows: Sequence[Row], effect: str) -> str:
    layers = [spread.mean for spread in _by_layer(rows, effect)]
    return f"{Spread.of(_by_draw(rows, effect).values()).text(digits=2)} ({Spread.of(layers).deviation:.2f})"


def _verdicts(rows: Sequence[Row]) -> list[str]:
    """The best score for each effect against each other, paired over draws."""
    lines = []
    for effect, name in EFFECTS.items():
        means = {score: _by_draw([row for row in rows if row["score"] == score], effect) for score in _measured(rows)}
        best = max(means, key=lambda score: Spread.of(means[score].values()).mean)
        close = [NAMES[other] for other in means if other != best and not _better(means[best], means[other])]
        told = f"not told apart from {', '.join(close)}" if close else "told apart from all others"
        lines.append(f"- **{name}**: best predicted by *{NAMES[best]}*, {told}.")
    return lines


def _better(first: dict[object, float], second: dict[object, float]) -> bool:
    return Spread.of(first[draw] - second[draw] for draw in first if draw in second).told_from_zero


def _by_draw(rows: Sequence[Row], effect: str) -> dict[object, float]:
    """Mean over layers."""
    found: dict[object, list[float]] = {}
    for row in rows:
        found.setdefault(draw_of(row), []).append(row[effect])
    return {draw: Spread.of(values).mean for draw, values in found.items()}


def _by_layer(rows: Sequence[Row], effect: str) -> list[Spread]:
    """Over draws, in execution order."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["layer"], []).append(row[effect])
    return [Spread.of(values) for values in found.values()]


def _chart(rows: Sequence[Row], title: str) -> Chart:
    layers = tuple(str(number + 1) for number in range(len({row["layer"] for row in rows})))
    by_score = {NAMES[score]: [row for row in rows if row["score"] == score] for score in _measured(rows)}
    panels = []
    for effect, name in EFFECTS.items():
        lines = tuple(_line(label, found, effect) for label, found in by_score.items())
        panels.append(Panel(name, "layer", "rank correlation", layers, lines))
    return Chart(f"Gradient scores: {title}", tuple(panels))


def _line(label: str, rows: Sequence[Row], effect: str) -> Line:
    spreads = _by_layer(rows, effect)
    means, deviations = (tuple(round(getattr(s, f), 4) for s in spreads) for f in ("mean", "deviation"))
    return Line(label, means, deviations)


def _measured(rows: Sequence[Row]) -> list[str]:
    """A draw that was stopped may lack some."""
    found = {row["score"] for row in rows}
    return [score for score in NAMES if score in found]
