"""Answer images on a phone: by the submodel where it is sure, by a larger model elsewhere, in original labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedcaptor.client.engine import Engine, Submodel
from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.config import Fallback
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.plugins import is_own, resolve

ABSTAINED = -1
"""The label of an image that nobody answers."""


def out_of_set_score(scores: npt.NDArray[Any], kind: str, others: npt.NDArray[Any] | None = None) -> Floats:
    """Score how sure the submodel is that each image is of its classes [N]; low scores suggest other classes.

    `kind`: logsumexp of logits (`energy`, Liu et al. 2020), the largest softmax probability (`max-softmax`, Hendrycks &
    Gimpel 2017), or the largest logit (`max-logit`, Hendrycks et al. 2022), which is energy plus the logarithm of that
    probability: it is low for images of other classes and for those between two own.

    `others` [N, m]: logits of other classes, where the submodel has kept some. Probabilities are then those among all;
    from the other scores the energy of `others` is taken off. `kind` may be a user's own, `package.module:function`:
    raises ConfigError when that gives scores of another form.
    """
    if is_own(kind):
        return _own_score(kind, scores, others)
    z = scores.astype(np.float64)
    top, energy = z.max(1), np.logaddexp.reduce(z, axis=1)
    if others is None or others.shape[1] == 0:
        return np.asarray({"energy": energy, "max-softmax": np.exp(top - energy), "max-logit": top}[kind])
    other = np.logaddexp.reduce(others.astype(np.float64), axis=1)
    among = np.exp(top - np.logaddexp(energy, other))
    return np.asarray({"energy": energy - other, "max-softmax": among, "max-logit": top - other}[kind])


def _own_score(kind: str, scores: npt.NDArray[Any], others: npt.NDArray[Any] | None) -> Floats:
    score = resolve(kind, "fallback.score", "energy, max-softmax, max-logit")
    found = np.asarray(score(scores.astype(np.float64), others), np.float64)
    if found.shape != (len(scores),) or not np.isfinite(found).all():
        raise ConfigError(f"fallback.score {kind!r} gave {found.shape} for {len(scores)} images, must be finite, [N]")
    return found


@dataclass(frozen=True, eq=False)
class Answers:
    """Hold answers: `labels` [N] are original labels or ABSTAINED; `alone` [N] are those of the submodel without any
    escalation; `escalated` [N] tells where it was unsure; `scores` [N] are out-of-set scores.

    Without a submodel the full model's answers are both `labels` and `alone`.
    """

    labels: Indices
    alone: Indices
    escalated: npt.NDArray[np.bool_]
    scores: Floats


@dataclass(frozen=True, eq=False)
class Models:
    """Hold what a phone answers with.

    `own`: its submodel; without it the full model answers all. `larger`: answers what
    `own` is unsure of, where the out-of-set score is below `threshold`; without it nobody does. `prior` [C]: see
    `Calibration.prior_for_logits`. `classes`: those that `own` answers with, its other outputs only say how sure it is.
    """

    own: Submodel | None
    larger: Submodel | None
    prior: Floats
    threshold: float
    classes: Indices

    @property
    def served(self) -> Indices:
        """Return the labels that some model here answers with."""
        return self.classes if self.larger is None else self.larger.classes


def weighed(submodel: Submodel, prior: Floats, classes: Indices, images: Images) -> tuple[Floats, Floats]:
    """Return logits of `classes` [N, k], sorted labels, and of other outputs [N, m], with log priors added."""
    z = submodel.scores(images).astype(np.float64) + np.log(prior[submodel.classes])
    answered = np.isin(submodel.classes, classes)
    return z[:, answered], z[:, ~answered]


def answer(engine: Engine, models: Models, settings: Fallback, images: Images) -> Answers:
    """Answer uint8 images [N, H, W, C]; the larger model runs on those alone that are escalated."""
    if len(images) == 0:
        nothing = np.zeros(0, dtype=np.int64)
        return Answers(nothing, nothing, np.zeros(0, dtype=bool), np.zeros(0))
    if models.own is None:
        labels = _by(engine.whole(), models.prior, images)
        return Answers(labels, labels, np.zeros(len(images), dtype=bool), np.zeros(len(images)))
    z, others = weighed(models.own, models.prior, models.classes, images)
    scores = out_of_set_score(z, settings.score, others)
    alone, escalated = models.classes[z.argmax(1)], scores < models.threshold
    labels = alone.copy()
    if models.larger is None:
        labels[escalated] = ABSTAINED
    elif escalated.any():
        labels[escalated] = _by(models.larger, models.prior, images[escalated])
    return Answers(labels, alone, escalated, scores)


def _by(model: Submodel, prior: Floats, images: Images) -> Indices:
    return np.asarray(model.classes[(model.scores(images) + np.log(prior[model.classes])).argmax(1)])
