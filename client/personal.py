"""Do the personal step: make a submodel of exactly the owner's classes from a cluster's plan, on the phone alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcaptor.client.engine import Engine, Evidence, Submodel
from fedcaptor.client.images import spread
from fedcaptor.client.offer import Offer
from fedcaptor.client.outcome import Kind
from fedcaptor.client.owner import Owner
from fedcaptor.client.validation import Judgement, Validation
from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.config import Config, Precision
from fedcaptor.common.errors import PlanError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.plan import Plan
from fedcaptor.common.planner import allocate
from fedcaptor.common.preference import importance
from fedcaptor.common.tiers import budget_ladder, fits


@dataclass(frozen=True, eq=False)
class Personalised:
    """Hold the result of the personal step.

    `kind`: "personal", "cluster" or "full" (nothing smaller was good enough; `submodel` is None).

    `prior` [C]: its logarithm is added to logits (`Calibration.prior_for_logits` of the owner's usage). `agreement`:
    with the full model limited to the same classes, on the validation set; `agreement_cluster` that of the cluster's
    submodel. `threshold`: an image whose out-of-set score is below it goes to the full model; `escalated`: share of
    images that do. `precision`: what `submodel` computes in.
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
    precision: Precision = "float32"


def personalise(
    engine: Engine,
    offer: Offer,
    memory: npt.NDArray[np.float64],
    use: Images,
    check: Images,
    config: Config,
    seed: int = 0,
    corrections: npt.NDArray[np.integer] | None = None,
) -> Personalised:
    """Refine a submodel on the `use` images, judge it on the `check` images, and keep it or fall back.

    All of them say which classes the owner meets; `memory` [C]: decayed counts of earlier images. `corrections` [N]:
    labels that the owner gave to use images, -1 where none. Otherwise the full model's answers stand for labels. Of the
    reference images, two thirds refine and the rest judges.
    """
    groups, calibration = engine.groups, offer.calibration or Calibration.none(engine.groups.classes)
    full_use, full_check = engine.scores(use), engine.scores(check)
    likelihoods = calibration.likelihoods(full_use)
    if corrections is not None and (known := corrections >= 0).any():
        likelihoods[known] = np.eye(groups.classes)[corrections[known]]
    seen = np.concatenate([likelihoods, calibration.likelihoods(full_check)])
    owner = Owner.of(seen, memory, offer.centroids, config.usage, offer.mixed)
    learn, judge = _divided(offer, check[:0])
    validation = Validation.of(owner, calibration, (check, full_check), (judge[0], engine.scores(judge[0]), judge[1]))
    images = np.concatenate([use[owner.meets(likelihoods)], learn[0][np.isin(learn[1], owner.classes)]])
    images = spread(images, config.personal.images)
    start = offer.plans[owner.cluster] if owner.cluster >= 0 and offer.plans else None
    if len(images) == 0 or (start is None and not config.personal.enabled):
        return _kept_full(validation)
    evidence = engine.observe(
        owner.classes,
        images,
        start=start if config.personal.start == "cluster" and start is not None else None,
        importance=importance(groups, offer.preference, owner.usage, config.scores.weight),
        seed=seed,
        rows=config.personal.rows,
    )
    search = _Search(engine, evidence, validation, config, start)
    kind: Kind = "personal"
    at_cluster = 0.0
    best = search.cheapest(images, seed)
    if start is not None:
        of_cluster = search.judged(evidence.build(_with_classes(start, search.outputs, groups)))
        at_cluster = of_cluster.agreement
        good = search.too_large or search.good(of_cluster, 2 * config.personal.tolerance)
        if best is None and good and fits(config.own_tier, groups, of_cluster.submodel.plan.counts()):
            kind, best = "cluster", of_cluster
    if best is None or (best.effective_macs >= 1 and not search.too_large):
        return _kept_full(validation, at_cluster)
    submodel = _refitted(engine, best.submodel, owner.classes, offer, images)
    found = best if submodel is best.submodel else search.judged(submodel)
    eight_bits = search.in_eight_bits(found, images) if config.personal.precision == "int8" else None
    found = eight_bits or found
    return Personalised(
        kind,
        owner.classes,
        validation.prior,
        found.submodel,
        found.agreement,
        at_cluster,
        found.threshold,
        found.escalated,
        owner.cluster,
        "int8" if eight_bits else "float32",
    )


@dataclass(frozen=True, eq=False)
class _Search:
    """Look for the submodel that is good enough and costs least."""

    engine: Engine
    evidence: Evidence
    validation: Validation
    config: Config
    start: Plan | None

    @property
    def outputs(self) -> Indices:
        """Return the classes that the own submodel has outputs for: the owner's, or all that its base has."""
        own = self.config.fallback.outputs == "own"
        return self.evidence.classes if own else np.arange(self.engine.groups.classes)

    @property
    def too_large(self) -> bool:
        """Tell whether the full model is too large for this phone's tier."""
        return not fits(self.config.own_tier, self.engine.groups, {})

    def judged(self, submodel: Submodel) -> Judgement:
        """Judge a submodel, escalations included."""
        mode, groups = self.config.fallback.mode, self.engine.groups
        larger = 1.0 if mode == "kept_full" else 0.0
        if mode == "cluster" and self.start is not None:
            larger = groups.macs_ratio(self.start.counts())
        return self.validation.judge(submodel, self.config.fallback, larger)

    def good(self, found: Judgement, tolerance: float) -> bool:
        """Tell whether a submodel loses little enough, with the configured confidence."""
        return found.good(tolerance, self.config.personal.confidence)

    def cheapest(self, images: Images, seed: int) -> Judgement | None:
        """Return the submodel of the ladder with the fewest effective MACs among those that are good enough, if any.

        At the largest budget it may lose twice as much, and without limit on a phone that cannot hold the full model.
        With `personal.tune_steps`, a submodel that loses too much is tuned on `images`.
        """
        config, settings, groups = self.config, self.config.personal, self.engine.groups
        if not settings.enabled:
            return None
        budgets = budget_ladder(config.own_tier, groups, settings.ladder, config.planner.multiple)
        best: Judgement | None = None
        for budget in budgets:
            try:
                plan = allocate(groups, self.evidence.curves, self.outputs, budget)
            except PlanError:  # the smallest model of these classes is larger: try the next rung
                continue
            if best is not None and groups.macs_ratio(plan.counts()) >= best.effective_macs:
                break
            last = 1.0 if self.too_large else 2 * settings.tolerance
            allowed = last if budget == budgets[-1] else settings.tolerance
            tried = self.judged(self.evidence.build(plan))
            if not self.good(tried, allowed) and settings.tune_steps and len(images) > 1:
                known = self.validation.known
                tried = self.judged(
                    self.engine.tuned(tried.submodel, images, known, steps=settings.tune_steps, seed=seed)
                )
            if self.good(tried, allowed) and (best is None or tried.effective_macs < best.effective_macs):
                best = tried
        return best

    def in_eight_bits(self, found: Judgement, images: Images) -> Judgement | None:
        """Return the submodel that was `found` good enough in eight bits, None where it is then no longer.

        It may lose as much as `found` was allowed to.
        """
        quantised, tolerance = self.engine.quantised(found.submodel, images), self.config.personal.tolerance
        if quantised is None:
            return None
        allowed = next((bound for bound in (tolerance, 2 * tolerance) if self.good(found, bound)), 1.0)
        tried = self.judged(quantised)
        saves = tried.effective_macs < 1 or self.too_large
        return tried if saves and self.good(tried, allowed) else None


def _kept_full(validation: Validation, at_cluster: float = 0.0) -> Personalised:
    """Make the result for a phone that keeps the full model, as nothing smaller was good enough."""
    owner = validation.owner
    return Personalised("full", owner.classes, validation.prior, None, 1.0, at_cluster, -np.inf, 0.0, owner.cluster)


def _divided(offer: Offer, none: Images) -> tuple[tuple[Images, Indices], tuple[Images, Indices]]:
    """Divide the reference images: every third of a class judges, the others refine."""
    if offer.reference is None or offer.labels is None:
        nothing = none, np.zeros(0, dtype=np.int64)
        return nothing, nothing
    order = np.argsort(offer.labels, kind="stable")
    first = np.searchsorted(offer.labels[order], offer.labels[order])
    judges = np.zeros(len(order), dtype=bool)
    judges[order] = (np.arange(len(order)) - first) % 3 == 2
    x, y = offer.reference, offer.labels
    return (x[~judges], y[~judges]), (x[judges], y[judges])


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
