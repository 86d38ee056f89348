"""Do the personal step: make a submodel of exactly the owner's classes from a cluster's plan, on the phone alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcaptor.client.engine import Engine, Evidence, Logits, Submodel
from fedcaptor.client.fallback import out_of_set_score, weighed
from fedcaptor.client.offer import Offer
from fedcaptor.client.outcome import Kind
from fedcaptor.client.owner import Owner
from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.config import Config, Fallback
from fedcaptor.common.errors import PlanError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.plan import Plan
from fedcaptor.common.planner import allocate
from fedcaptor.common.preference import importance
from fedcaptor.common.softmax import softmax
from fedcaptor.common.tiers import budget_ladder, fits


@dataclass(frozen=True, eq=False)
class Personalised:
    """Hold the result of the personal step.

    `kind`: "personal", "cluster" or "full" (nothing smaller was good enough; `submodel` is None).

    `prior` [C]: how likely the owner meets each class; its logarithm is added to logits. `agreement`: with the full
    model limited to the same classes, on check images; `agreement_cluster` that of the cluster's submodel.
    `threshold`: an image whose out-of-set score is below it goes to the full model; `escalated`: share of own images
    that do.
    """

    kind: Kind
    classes: Indices
    prior: Floats
    submodel: Submodel | None
    agreement: float
    agreement_cluster: float
    threshold: float
    escalated: float
    cluster: int


def personalise(
    engine: Engine,
    offer: Offer,
    counts: npt.NDArray[np.float64],
    use: Images,
    check: Images,
    config: Config,
    seed: int = 0,
) -> Personalised:
    """Refine a submodel on the `use` images, check it on the `check` images, and keep it or fall back.

    `counts` [C]: uses of each class. The full model's answers stand for labels.
    """
    owner, groups = Owner.of(counts, offer.centroids, config.usage), engine.groups
    full_use, full_check = engine.scores(use), engine.scores(check)
    calibration = _calibration(offer, owner.classes, use[owner.meets(softmax(full_use))])
    trusted = owner.meets(softmax(full_check))
    validation = _Validation(owner, owner.prior(config.fallback.own_prior), check[trusted], full_check[trusted])
    start = offer.plans[owner.cluster] if owner.cluster >= 0 and offer.plans else None
    if len(calibration) == 0 or (start is None and not config.personal.enabled):
        return validation.kept_full()
    evidence = engine.observe(
        owner.classes,
        calibration,
        start=start if config.personal.start == "cluster" and start is not None else None,
        importance=importance(groups, offer.preference, owner.usage, config.scores.weight),
        seed=seed,
        rows=config.personal.rows,
    )
    kind: Kind = "personal"
    at_cluster = 0.0
    best, agreement = _smallest_good(engine, evidence, calibration, validation, config, seed)
    if start is not None:
        of_cluster = evidence.build(_with_classes(start, _outputs(evidence, groups, config), groups))
        at_cluster = validation.agreement(of_cluster)
        good = _too_large(groups, config) or 1 - at_cluster <= 2 * config.personal.tolerance
        if best is None and good and fits(config.own_tier, groups, of_cluster.plan.counts()):
            kind, best, agreement = "cluster", of_cluster, at_cluster
    if best is None:
        return validation.kept_full(at_cluster)
    best = _refitted(engine, best, owner.classes, offer, calibration)
    threshold, escalated = validation.threshold(best, config.fallback)
    return Personalised(
        kind, owner.classes, validation.prior, best, agreement, at_cluster, threshold, escalated, owner.cluster
    )


def _smallest_good(
    engine: Engine, evidence: Evidence, images: Images, validation: _Validation, config: Config, seed: int
) -> tuple[Submodel | None, float]:
    """Find the submodel of the smallest budget on the ladder that agrees well enough, and its agreement.

    At the largest budget it may disagree twice as much, and without limit on a phone that cannot hold the full model.
    With `personal.tune_steps`, a submodel that disagrees too often is tuned on `images`.
    """
    settings, groups = config.personal, engine.groups
    budgets = (
        budget_ladder(config.own_tier, groups, settings.ladder, config.planner.multiple) if settings.enabled else []
    )
    for budget in budgets:
        try:
            candidate = evidence.build(allocate(groups, evidence.curves, _outputs(evidence, groups, config), budget))
        except PlanError:  # the smallest model of these classes is larger: try the next rung
            continue
        last = 1.0 if _too_large(groups, config) else 2 * settings.tolerance
        allowed = last if budget == budgets[-1] else settings.tolerance
        reached = validation.agreement(candidate)
        if 1 - reached > allowed and settings.tune_steps and len(images) > 1:
            candidate = engine.tuned(candidate, images, validation.images, steps=settings.tune_steps, seed=seed)
            reached = validation.agreement(candidate)
        if 1 - reached <= allowed:
            return candidate, reached
    return None, 0.0


def _too_large(groups: ChannelGroups, config: Config) -> bool:
    """Tell whether the full model is too large for this phone's tier."""
    return not fits(config.own_tier, groups, {})


@dataclass(frozen=True, eq=False)
class _Validation:
    """Compare submodels with the full model's logits `full` [N, C] on check `images` that are of the own classes."""

    owner: Owner
    prior: Floats
    images: Images
    full: Logits

    def _scores(self, submodel: Submodel) -> tuple[Floats, Floats]:
        return weighed(submodel, self.prior, self.owner.classes, self.images)

    def agreement(self, submodel: Submodel) -> float:
        """Return the share of images [0, 1] on which both answer alike, among own classes and with the owner's prior.

        It is 1 without images: nothing contradicts the submodel.
        """
        if len(self.images) == 0:
            return 1.0
        own = self.owner.classes
        expected = (self.full[:, own] + np.log(self.prior[own])).argmax(1)
        return float((self._scores(submodel)[0].argmax(1) == expected).mean())

    def threshold(self, submodel: Submodel, settings: Fallback) -> tuple[float, float]:
        """Return the score below which an image is escalated and the share of own images that is.

        The threshold keeps the share `settings.retention` of own images. Check images alone give it: the submodel is
        surer of the images that its weights were reconstructed on.
        """
        if len(self.images) == 0:
            return -np.inf, 0.0
        own, others = self._scores(submodel)
        scores = out_of_set_score(own, settings.score, others)
        threshold = float(np.quantile(scores, 1 - settings.retention))
        return threshold, float((scores < threshold).mean())

    def kept_full(self, at_cluster: float = 0.0) -> Personalised:
        """Make the result for a phone that keeps the full model, as nothing smaller was good enough."""
        owner = self.owner
        return Personalised("full", owner.classes, self.prior, None, 1.0, at_cluster, -np.inf, 0.0, owner.cluster)


def _calibration(offer: Offer, own: Indices, images: Images) -> Images:
    if offer.reference is None or offer.labels is None:
        return images
    return np.concatenate([images, offer.reference[np.isin(offer.labels, own)]])


def _outputs(evidence: Evidence, groups: ChannelGroups, config: Config) -> Indices:
    """Return the classes that the own submodel has outputs for: the owner's, or all that its base has."""
    return evidence.classes if config.fallback.outputs == "own" else np.arange(groups.classes)


def _refitted(engine: Engine, submodel: Submodel, own: Indices, offer: Offer, images: Images) -> Submodel:
    """Fit a submodel's outputs for other classes on their reference images and on `images` of the own classes.

    Without such outputs or reference images the submodel is returned as it is.
    """
    others = np.setdiff1d(submodel.classes, own)
    if len(others) == 0 or offer.reference is None or offer.labels is None:
        return submodel
    return engine.refitted(submodel, np.concatenate([images, offer.reference[np.isin(offer.labels, others)]]), others)


def _with_classes(start: Plan, classes: Indices, groups: ChannelGroups) -> Plan:
    """Return the plan with outputs for `classes` in place of its own."""
    return Plan.of(groups, {**start.kept, groups.output.name: classes})
