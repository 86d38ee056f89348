"""Gradient scores against the measured effect of closing filters: a table and a chart a number of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.charts import Chart, Line, Panel
from benchmarks.pages.rows import draw_of
from benchmarks.pages.section import Section, section
from benchmarks.record import Record, Row
from benchmarks.tables import Spread

NAMES = {
    "taylor": "abs(Σ a·g), Taylor",
    "signed-taylor": "−Σ a·g, signed",
    "map-gradient": "Σ abs(g) on the map",
    "weight-gradient": "Σ abs(g) on the weights",
    "l1": "Σ abs(w), no gradient",
}
EFFECTS = {"correlation_size": "size of the effect", "correlation": "rise in the mean loss"}


@dataclass(frozen=True)
class Correlation:
    """The correlation of one score with one effect; `by_draw`: means over layers, `by_layer`: over draws, in order."""

    by_draw: Mapping[object, float]
    by_layer: Sequence[Spread]

    @classmethod
    def of(cls, rows: Sequence[Row], effect: str) -> Correlation:
        draws = _spreads(rows, effect, draw_of)
        layers = _spreads(rows, effect, lambda row: row["layer"])
        return cls({draw: spread.mean for draw, spread in draws.items()}, tuple(layers.values()))

    @property
    def draws(self) -> Spread:
        return Spread.of(self.by_draw.values())

    @property
    def layers(self) -> Spread:
        return Spread.of(spread.mean for spread in self.by_layer)

    def better_than(self, other: Correlation) -> bool:
        """Tell whether the difference, paired over draws, is told from chance."""
        pairs = [draw for draw in self.by_draw if draw in other.by_draw]
        return Spread.of(self.by_draw[draw] - other.by_draw[draw] for draw in pairs).told_from_zero


Scores = Mapping[str, Mapping[str, Correlation]]
"""Correlations by score and effect."""


def render(record: Record) -> Section:
    """Make a section a model, a part and a chart for each number of classes."""
    model, parts, charts = record.settings["model"], [], {}
    slug = "".join(c if c.isalnum() else "-" for c in model)
    for size in sorted({len(row["classes"]) for row in record.rows}):
        rows = [row for row in record.rows if len(row["classes"]) == size]
        by_score = {score: [row for row in rows if row["score"] == score] for score in NAMES}
        scores = {  # a draw that was stopped may lack some
            score: {effect: Correlation.of(found, effect) for effect in EFFECTS}
            for score, found in by_score.items()
            if found
        }
        targets = f"{size} of {record.settings['outputs']} classes"
        draws = len({draw_of(row) for row in rows})
        parts.append({"title": targets, "draws": draws, "scores": scores, "verdicts": _verdicts(scores)})
        charts[f"gradients-{slug}-{size}"] = _chart(scores, f"Gradient scores: {model}, {targets}")
    return section("gradients", record, charts, names=NAMES, effects=EFFECTS, parts=parts)


def _spreads(rows: Sequence[Row], effect: str, by: Callable[[Row], object]) -> dict[object, Spread]:
    found: dict[object, list[float]] = {}
    for row in rows:
        found.setdefault(by(row), []).append(row[effect])
    return {key: Spread.of(values) for key, values in found.items()}


def _verdicts(scores: Scores) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the best score for each effect, and the names of those that it is not told apart from."""
    for effect in EFFECTS:
        found = {score: by_effect[effect] for score, by_effect in scores.items()}
        best = max(found, key=lambda score: found[score].draws.mean)
        close = [NAMES[other] for other in found if other != best and not found[best].better_than(found[other])]
        yield effect, best, close


def _chart(scores: Scores, title: str) -> Chart:
    panels = []
    for effect, name in EFFECTS.items():
        found = {score: by_effect[effect].by_layer for score, by_effect in scores.items()}
        lines = tuple(Line.of(NAMES[score], layers, 1, 4) for score, layers in found.items())
        layers = tuple(str(number + 1) for number in range(max(map(len, found.values()))))
        panels.append(Panel(name, "layer", "rank correlation", layers, lines))
    return Chart(title, tuple(panels))
