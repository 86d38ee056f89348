"""How a phone answers: the submodel where it is sure, the full model elsewhere, always in the original labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.config import Fallback
from common.plan import Indices
from common.torch_engine.base import BaseModel, Submodel
from common.torch_engine.forward import Images, logits, normalise

Floats = npt.NDArray[np.float64]


def out_of_set_score(scores: npt.NDArray[Any], kind: str) -> Floats:
    """How sure the submodel is that the image is of its classes [N]: logsumexp of logits (Liu et al. 2020), or the
    largest softmax probability (Hendrycks & Gimpel 2017).
    """
    z = scores.astype(np.float64)
    top = z.max(1)
    energy = top + np.log(np.exp(z - top[:, None]).sum(1))
    return np.asarray(energy if kind == "energy" else np.exp(top - energy))


@dataclass(frozen=True, eq=False)
class Answers:
    """`labels` [N] original labels; `escalated` [N]: the full model answered; `scores` [N]: out-of-set scores."""

    labels: Indices
    escalated: npt.NDArray[np.bool_]
    scores: Floats


def answer(
    base: BaseModel,
    submodel: Submodel | None,
    prior: Floats,
    threshold: float,
    settings: Fallback,
    images: Images,
) -> Answers:
    """Answers for uint8 images [N, H, W, C]; the full model runs on those alone that score below `threshold`.

    `prior` [C]: see `Owner.prior`.
    """
    if len(images) == 0:
        return Answers(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool), np.zeros(0))
    if submodel is None:
        labels = _by_full_model(base, prior, images)
        return Answers(labels, np.zeros(len(images), dtype=bool), np.zeros(len(images)))
    z = submodel.scores(images) + np.log(prior[submodel.classes])
    scores = out_of_set_score(z, settings.score)
    labels, escalated = submodel.classes[z.argmax(1)], scores < threshold
    if escalated.any():
        labels[escalated] = _by_full_model(base, prior, images[escalated])
    return Answers(labels, escalated, scores)


def _by_full_model(base: BaseModel, prior: Floats, images: Images) -> Indices:
    full = logits(base.module, normalise(images, base.mean, base.std))
    return np.asarray((full + np.log(prior)).argmax(1))
