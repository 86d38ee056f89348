"""Out-of-set scores of submodels side by side, and their calibration: two tables a number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from benchmarks.pages.rows import draw_of, one_each, paired, where
from benchmarks.pages.section import Section, section
from benchmarks.record import Record, Row

NAMES = {
    "energy": "energy of the target classes' logits",
    "max-softmax": "largest softmax probability",
    "max-logit": "largest logit",
    "max-logit-kept": "largest logit, other outputs kept",
    "max-logit-refitted": "largest logit, other outputs refitted",
    "reject-logits": "reject classes from the target classes' logits",
    "reject-features": "reject classes from the last features",
    "full-model": "full model's outputs",
}
USUAL = "max-logit"


def render(record: Record) -> Section:
    """Make a section a model, a part for each number of classes and budget."""
    sizes = sorted({len(row["classes"]) for row in record.rows})
    budgets = sorted(record.distinct("macs_target"), reverse=True)
    parts = []
    for size, macs in product(sizes, budgets):
        rows = [row for row in where(record.rows, macs_target=macs) if len(row["classes"]) == size]
        parts += [{"size": size, "macs": macs, **_part(rows)}] if rows else []
    return section("fallback", record, names=NAMES, usual=USUAL, parts=parts)


def _part(rows: Sequence[Row]) -> dict[str, Any]:
    """Return rows by score, what each gains over the largest logit, and a row a draw for what all scores share."""
    scores = {score: found for score in NAMES if (found := where(rows, score=score))}
    others = [score for score in scores if score != USUAL and USUAL in scores]
    gains = {score: paired(scores[score], scores[USUAL], "auroc", draw_of) for score in others}
    return {"scores": scores, "gains": gains, "once": one_each(rows, draw_of)}
