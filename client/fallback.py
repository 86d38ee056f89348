"""How a phone answers: the submodel where it is sure, the full model elsewhere, always in the original labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.config import Fallback
from common.plan import Indices
from common.torch_engine.base import BaseModel, Submodel
from common.torch_engine.forward import Images, logits, normalise

Floats = npt.NDArray[np.float64]


def out_of_set_score(scores: npt.NDArray[np.float32], kind: str) -> Floats:
    """How sure the submodel is that the image is of its classes [N]: logsumexp of logits (Liu et al. 2020), or the
    largest softmax probability (Hendrycks & Gimpel 2017).
    """
    z = scores.astype(np.float64)
    top = z.max(1)
    energy = top + np.log(np.exp(z - top[:, None]).sum(1))
    return np.asarray(energy if kind == "energy" else np.exp(top - energy))


def escalation_prior(own: Indices, classes: int, inside: float) -> Floats:
    """Log prior [C] of an escalated image, which is of the owner's classes with probability `inside`."""
    prior = np.full(classes, (1 - inside) / max(classes - len(own), 1))
    prior[own] = inside / len(own)
    return np.asarray(np.log(prior))


@dataclass(frozen=True, eq=False)
class Answers:
    """`labels` [N] original labels; `escalated` [N]: the full model answered; `scores` [N]: out-of-set scores."""

    labels: Indices
    escalated: npt.NDArray[np.bool_]
    scores: Floats


def answer(base: BaseModel, submodel: Submodel | None, threshold: float, settings: Fallback, images: Images) -> Answers:
    """Answers for uint8 images [N, H, W, C]; the full model runs on those alone that score below `threshold`."""
    if len(images) == 0:
        return Answers(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool), np.zeros(0))
    if submodel is None:
        full = logits(base.module, normalise(images, base.mean, base.std))
        return Answers(full.argmax(1), np.zeros(len(images), dtype=bool), np.zeros(len(images)))
    z = submodel.scores(images)
    scores = out_of_set_score(z, settings.score)
    labels, escalated = submodel.classes[z.argmax(1)], scores < threshold
    if escalated.any():
        full = logits(base.module, normalise(images[escalated], base.mean, base.std))
        labels[escalated] = (full + escalation_prior(submodel.classes, full.shape[1], settings.own_prior)).argmax(1)
    return Answers(labels, escalated, scores)
