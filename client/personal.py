"""The personal step: from a cluster's plan to a submodel of exactly the owner's classes, on the phone alone."""

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
    """`kind`: "personal", "cluster" or "full" (nothing smaller was good enough; `submodel` is None).

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
    """Refine, check on the owner's own images, keep or fall back; the full model's answers stand for labels."""
    owner, groups = Owner.of(counts, offer.centroids, config.usage), engine.groups
    full_use, full_check = engine.scores(use), engine.scores(check)
    calibration = _calibration(offer, owner.classes, use[owner.meets(softmax(full_use))])
    trusted = owner.meets(softmax(full_check))
    judge = _Judge(owner, owner.prior(config.fallback.own_prior), check[trusted], full_check[trusted])
    start = offer.plans[owner.cluster] if owner.cluster >= 0 and offer.plans else None
    if len(calibration) == 0 or (start is None and not config.personal.enabled):
        return judge.kept_full()
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
    best, agreement = _smallest_good(engine, evidence, calibration, judge, config, seed)
    if start is not None:
        of_cluster = evidence.build(_with_classes(start, _outputs(evidence, groups, config), groups))
        at_cluster = judge.agreement(of_cluster)
        good = _too_large(groups, config) or 1 - at_cluster <= 2 * config.personal.tolerance
        if best is None and good and fits(config.own_tier, groups, of_cluster.plan.counts()):
            kind, best, agreement = "cluster", of_cluster, at_cluster
    if best is None:
        return judge.kept_full(at_cluster)
    best = _refitted(engine, best, owner.classes, offer, calibration)
    threshold, escalated = judge.threshold(best, config.fallback)
    return Personalised(
        kind, owner.classes, judge.prior, best, agreement, at_cluster, threshold, escalated, owner.cluster
    )


def _smallest_good(
    engine: Engine, evidence: Evidence, images: Images, judge: _Judge, config: Config, seed: int
) -> tuple[Submodel | None, float]:
    """The smallest rung of the ladder that agrees well enough, and its agreement; the largest may disagree twice as
    much, on a limited phone as much as it will. Where wanted, one that disagrees too often is tuned on `images`.
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
        reached = judge.agreement(candidate)
        if 1 - reached > allowed and settings.tune_steps and len(images) > 1:
            candidate = engine.tuned(candidate, images, judge.images, steps=settings.tune_steps, seed=seed)
            reached = judge.agreement(candidate)
        if 1 - reached <= allowed:
            return candidate, reached
    return None, 0.0


def _too_large(groups: ChannelGroups, config: Config) -> bool:
    """Whether the full model is too large for this phone's tier."""
    return not fits(config.own_tier, groups, {})


@dataclass(frozen=True, eq=False)
class _Judge:
    """Holds submodels against the full model's answers `full` [N, C] on check `images` that are of the own classes."""

    owner: Owner
    prior: Floats
    images: Images
    full: Logits

    def _scores(self, submodel: Submodel) -> tuple[Floats, Floats]:
        return weighed(submodel, self.prior, self.owner.classes, self.images)

    def agreement(self, submodel: Submodel) -> float:
        """Share of images [0, 1] on which both answer alike, each among the own classes and with the owner's habits
        as prior; 1 without images: there is nothing to hold against it.
        """
        if len(self.images) == 0:
            return 1.0
        own = self.owner.classes
        expected = (self.full[:, own] + np.log(self.prior[own])).argmax(1)
        return float((self._scores(submodel)[0].argmax(1) == expected).mean())

    def threshold(self, submodel: Submodel, settings: Fallback) -> tuple[float, float]:
        """Score below which an image is escalated, such that the wanted share of own images is kept; and the share
        lost. Read off check images alone: the submodel is surer of the images that it was merged on.
        """
        if len(self.images) == 0:
            return -np.inf, 0.0
        own, others = self._scores(submodel)
        scores = out_of_set_score(own, settings.score, others)
        threshold = float(np.quantile(scores, 1 - settings.retention))
        return threshold, float((scores < threshold).mean())

    def kept_full(self, at_cluster: float = 0.0) -> Personalised:
        """Nothing smaller was good enough."""
        owner = self.owner
        return Personalised("full", owner.classes, self.prior, None, 1.0, at_cluster, -np.inf, 0.0, owner.cluster)


def _calibration(offer: Offer, own: Indices, images: Images) -> Images:
    if offer.reference is None or offer.labels is None:
        return images
    return np.concatenate([images, offer.reference[np.isin(offer.labels, own)]])


def _outputs(evidence: Evidence, groups: ChannelGroups, config: Config) -> Indices:
    """Classes that the own submodel has outputs for: the owner's, or all that its base has."""
    return evidence.classes if config.fallback.outputs == "own" else np.arange(groups.classes)


def _refitted(engine: Engine, submodel: Submodel, own: Indices, offer: Offer, images: Images) -> Submodel:
    """With outputs for other classes that were fitted on reference images of these too; as merged where there are none.
    `images`: of the own classes.
    """
    others = np.setdiff1d(submodel.classes, own)
    if len(others) == 0 or offer.reference is None or offer.labels is None:
        return submodel
    return engine.refitted(submodel, np.concatenate([images, offer.reference[np.isin(offer.labels, others)]]), others)


def _with_classes(start: Plan, classes: Indices, groups: ChannelGroups) -> Plan:
    """The plan's channels with these outputs."""
    return Plan.of(groups, {**start.kept, groups.output.name: classes})
