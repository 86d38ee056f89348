"""How a phone answers: the submodel where it is sure, a larger model elsewhere, always in the original labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.config import Fallback
from common.plan import Indices, Plan
from common.torch_engine.base import BaseModel, Submodel
from common.torch_engine.forward import Images

Floats = npt.NDArray[np.float64]

ABSTAINED = -1
"""The label of an image that nobody answers."""


def out_of_set_score(scores: npt.NDArray[Any], kind: str) -> Floats:
    """How sure the submodel is that the image is of its classes [N]: logsumexp of logits (`energy`, Liu et al. 2020),
    the largest softmax probability (`max-softmax`, Hendrycks & Gimpel 2017), or the largest logit (`max-logit`,
    Hendrycks et al. 2022), which is the sum of both: low for images of other classes and for those between two own.
    """
    z = scores.astype(np.float64)
    top = z.max(1)
    energy = top + np.log(np.exp(z - top[:, None]).sum(1))
    return np.asarray({"energy": energy, "max-softmax": np.exp(top - energy), "max-logit": top}[kind])


@dataclass(frozen=True, eq=False)
class Answers:
    """`labels` [N] original labels or ABSTAINED; `escalated` [N]: the submodel was unsure; `scores` [N]: out-of-set
    scores.
    """

    labels: Indices
    escalated: npt.NDArray[np.bool_]
    scores: Floats


def whole(base: BaseModel) -> Submodel:
    """The full model as the submodel that keeps everything."""
    return Submodel(base, Plan.of(base.groups, {}), base.module)


@dataclass(frozen=True, eq=False)
class Models:
    """What a phone answers with. `own`: its submodel; without it the full model answers all. `larger`: answers what
    `own` is unsure of, where the out-of-set score is below `threshold`; without it nobody does. `prior` [C]: see
    `Owner.prior`.
    """

    own: Submodel | None
    larger: Submodel | None
    prior: Floats
    threshold: float


def answer(base: BaseModel, models: Models, settings: Fallback, images: Images) -> Answers:
    """Answers for uint8 images [N, H, W, C]; the larger model runs on those alone that are escalated."""
    if len(images) == 0:
        return Answers(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool), np.zeros(0))
    if models.own is None:
        labels = _by(whole(base), models.prior, images)
        return Answers(labels, np.zeros(len(images), dtype=bool), np.zeros(len(images)))
    z = models.own.scores(images) + np.log(models.prior[models.own.classes])
    scores = out_of_set_score(z, settings.score)
    labels, escalated = models.own.classes[z.argmax(1)], scores < models.threshold
    if models.larger is None:
        labels[escalated] = ABSTAINED
    elif escalated.any():
        labels[escalated] = _by(models.larger, models.prior, images[escalated])
    return Answers(labels, escalated, scores)


def _by(model: Submodel, prior: Floats, images: Images) -> Indices:
    return np.asarray(model.classes[(model.scores(images) + np.log(prior[model.classes])).argmax(1)])
