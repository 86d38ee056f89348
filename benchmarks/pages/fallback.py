"""Out-of-set scores of submodels side by side, and their calibration: two tables a number of classes."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.pages.pruning_rows import draw_of
from benchmarks.pages.section import Section
from benchmarks.record import Record, Row
from benchmarks.tables import Spread, table

NAMES = {
    "energy": "energy of the needed logits",
    "max-softmax": "largest softmax probability",
    "max-logit": "largest logit",
    "max-logit-kept": "largest logit, other outputs kept",
    "max-logit-refitted": "largest logit, other outputs refitted",
    "reject-logits": "reject classes from the needed logits",
    "reject-features": "reject classes from the last features",
    "full-model": "full model's outputs",
}
FIGURES = {"auroc": "AUROC, %", "escalated_80": "escalated at 80 %", "escalated_95": "escalated at 95 %"}
CALIBRATION = {
    "accuracy": "accuracy",
    "ece": "calibration error",
    "ece_scaled": "… at a fitted temperature",
    "accuracy_full_limited": "full model, limited: accuracy",
    "ece_full_limited": "its calibration error",
}
USUAL = "max-logit"
INTRODUCTION = """\
{model}, {outputs} classes: how well its submodels tell test images of classes that they do not serve from those of
needed classes. *Escalated at 80 %*: share of the needed classes' images that goes to a larger model at the threshold
that sends 80 % of the other images there. Mean ± standard deviation over draws, in %. The first three scores look at
the logits of the needed classes alone. *Other outputs kept*: the submodel's last layer keeps its outputs for the other
classes, merged like the rest, and their energy is taken off the score; no image of another class is needed. *Other
outputs refitted*: these outputs follow the full model's by ridge regression on unlabelled images of all classes.
*Reject classes*: linear discriminant analysis with shrinkage, on images that the full model named. {images} images of
each class; reject classes see others of the needed classes than those merged on. *Full model's outputs*: the odds of
the needed classes among all, which no phone has before it escalates. Differences are paired over draws.

Calibration: expected calibration error in 15 bins on test images of the needed classes, of the probabilities among
them; the temperature is fitted to the full model's probabilities among the needed classes, on unlabelled images."""


def render(record: Record) -> Section:
    """A section a model."""
    parts = [INTRODUCTION.format(**record.settings)]
    for size in sorted({len(row["classes"]) for row in record.rows}):
        for macs in sorted({row["macs_target"] for row in record.rows}, reverse=True):
            rows = [row for row in record.rows if len(row["classes"]) == size and row["macs_target"] == macs]
            if rows:
                parts += _part(rows, f"{size} of {record.settings['outputs']} classes, {100 * macs:g} % MACs")
    return Section(f"Out-of-set scores of {record.settings['model']}", "\n\n".join(parts))


def _part(rows: Sequence[Row], title: str) -> list[str]:
    by_score = {score: [row for row in rows if row["score"] == score] for score in NAMES}
    measured = {score: found for score, found in by_score.items() if found}
    lines = [[NAMES[score], *_means(found, FIGURES)] for score, found in measured.items()]
    once = list({draw_of(row): row for row in rows}.values())
    heat = Spread.of(row["temperature"] for row in once).text(digits=2)
    return [
        f"### {title}",
        f"Draws: {len(once)}.",
        table(("", *(f"{name}" for name in FIGURES.values())), lines),
        "\n".join(_verdict(score, measured) for score in measured if score != USUAL and USUAL in measured),
        table(tuple(CALIBRATION.values()), [_means(once, CALIBRATION)]),
        f"Temperature: {heat}.",
    ]


def _means(rows: Sequence[Row], figures: dict[str, str]) -> list[str]:
    return [Spread.of(row[figure] for row in rows).text(100) for figure in figures]


def _verdict(score: str, measured: dict[str, list[Row]]) -> str:
    """Against the largest logit."""
    usual = {draw_of(row): row["auroc"] for row in measured[USUAL]}
    gain = Spread.of(row["auroc"] - usual[draw_of(row)] for row in measured[score] if draw_of(row) in usual)
    word = ("better" if gain.mean > 0 else "worse") if gain.told_from_zero else "not told from chance"
    return f"- **{NAMES[score]}** over the {NAMES[USUAL]}: AUROC {gain.text(100, sign=True)} points: {word}."
