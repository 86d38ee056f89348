"""Judge submodels on a phone's validation set: how much accuracy they lose, what they escalate, what they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcaptor.client.engine import Logits, Submodel
from fedcaptor.client.fallback import out_of_set_score, weighed
from fedcaptor.client.owner import Owner
from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.config import Fallback
from fedcaptor.common.softmax import softmax

REFERENCE_WORTH = 40.0
"""The server's images count as so many of the owner's own together: they are of another domain, but many."""

_DOUBT = (0.5, 1.5)  # Beta prior of the accuracy that a submodel loses: without an image nothing small is good enough
_LOGITS = np.arange(-40, 40, 0.01) + 0.005  # middles of cells, of which one begins at zero


def chance_below(bound: float, lost: float, seen: float) -> float:
    """Return the probability that a submodel loses at most `bound` of the accuracy, after `lost` of `seen` images.

    It is that of a Beta distribution, from a prior that expects a loss of a quarter and is worth two images. `lost` and
    `seen` need not be whole.
    """
    if bound >= 1:
        return 1.0
    if bound <= 0:
        return 0.0
    # The midpoint rule over log-odds, of which one cell ends at the bound's: the density has no pole there.
    odds = _LOGITS + math.log(bound / (1 - bound))
    a, b = _DOUBT[0] + lost, _DOUBT[1] + seen - lost
    log = -a * np.logaddexp(0, -odds) - b * np.logaddexp(0, odds)
    density = np.exp(log - log.max())
    return float(density[_LOGITS < 0].sum() / density.sum())


@dataclass(frozen=True, eq=False)
class Judgement:
    """Hold what a validation set says of one `submodel`.

    `agreement`: share of the images of own classes that it answers as the full model does. `lost`, `seen`: accuracy
    lost against the full model on these images, in images, and their number; both weighted. `threshold`: out-of-set
    score below which an image is escalated; `escalated`: share of all images that are. `effective_macs`:
    multiply-accumulates of an image over those of the full model, escalations included.
    """

    submodel: Submodel
    agreement: float
    lost: float
    seen: float
    threshold: float
    escalated: float
    effective_macs: float

    def good(self, tolerance: float, confidence: float) -> bool:
        """Tell whether the accuracy lost is at most `tolerance`, with probability `confidence` at least."""
        return chance_below(tolerance, self.lost, self.seen) >= confidence


@dataclass(frozen=True, eq=False)
class Validation:
    """Compare submodels with the full model, limited to the own classes.

    `images` [N] with the full model's logits `full` [N, C]; `weights` [N] sum to the number of own images that they are
    worth; `inside` [N] tells which are of own classes.
    """

    owner: Owner
    calibration: Calibration
    images: Images
    full: Logits
    weights: Floats
    inside: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        owner: Owner,
        calibration: Calibration,
        check: tuple[Images, Logits],
        reference: tuple[Images, Logits, Indices],
    ) -> Validation:
        """Make the set of the phone's own images and of reference images with labels, weighted by the owner's usage."""
        (own, full), (others, of_others, labels) = check, reference
        counts = np.bincount(labels, minlength=len(owner.usage))
        usage = np.where(counts > 0, owner.usage, 0.0)
        worth = REFERENCE_WORTH * usage / max(float(usage.sum()), 1e-12) / np.maximum(counts, 1)
        return cls(
            owner,
            calibration,
            np.concatenate([own, others]),
            np.concatenate([full, of_others]),
            np.concatenate([np.ones(len(own)), worth[labels]]),
            np.concatenate([owner.meets(calibration.likelihoods(full)), np.isin(labels, owner.classes)]),
        )

    @property
    def prior(self) -> Floats:
        """Return the prior [C] of answers, see `Calibration.prior_for_logits`."""
        return self.calibration.prior_for_logits(self.owner.usage)

    @property
    def known(self) -> Images:
        """Return the images of own classes."""
        return self.images[self.inside]

    def judge(self, submodel: Submodel, settings: Fallback, larger_macs: float) -> Judgement:
        """Judge a submodel; `larger_macs`: ratio of the model that answers what it is unsure of.

        The accuracy lost is what the full model's calibrated probabilities expect: a differing answer costs much where
        the full model is sure, and little where it is not. The threshold keeps the share `settings.retention` of the
        images of own classes.
        """
        if not self.inside.any():
            return Judgement(submodel, 1.0, 0.0, 0.0, -np.inf, 0.0, submodel.macs_ratio)
        prior, classes = self.prior, self.owner.classes
        own, others = weighed(submodel, prior, classes, self.images)
        scores = out_of_set_score(own, settings.score, others)
        full = self.full[:, classes] + np.log(prior[classes])
        chances = softmax(full / self.calibration.temperature)  # the prior is made for logits before this division
        answers, rows = own.argmax(1), np.arange(len(own))
        lost = chances.max(1) - chances[rows, answers]
        weights = np.where(self.inside, self.weights, 0.0)
        seen = float(weights.sum())
        threshold = _quantile(scores, weights, 1 - settings.retention)
        escalated = min(1.0, float(self.weights @ (scores < threshold) / self.weights.sum()))
        return Judgement(
            submodel=submodel,
            agreement=min(1.0, float(weights @ (answers == full.argmax(1)) / seen)),  # but for rounding
            lost=float(weights @ lost),
            seen=seen,
            threshold=threshold,
            escalated=escalated,
            effective_macs=submodel.macs_ratio + escalated * larger_macs,
        )


def _quantile(values: Floats, weights: Floats, share: float) -> float:
    """Return the smallest value such that values up to it have more than `share` of the weight."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    enough = share * reached[-1] * (1 + 1e-9)  # `share` may be a rounded difference, such as 1 - 0.9
    return float(values[order[min(int(np.searchsorted(reached, enough, side="right")), len(order) - 1)]])
