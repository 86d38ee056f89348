"""Plan each preference cluster's submodel from its centroid: what it keeps, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.config import Planner, Tier
from fedcaptor.common.data.source import Dataset
from fedcaptor.common.data.splits import split
from fedcaptor.common.errors import PlanError
from fedcaptor.common.explanation import explain
from fedcaptor.common.plan import Plan
from fedcaptor.common.tiers import tier_budget
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.prune import Evidence
from fedcaptor.common.torch_engine.tolerance import RATIOS, smallest_within


@dataclass(frozen=True, eq=False)
class Reference:
    """Hold the server's own labelled images: `x` uint8 [N, H, W, C], `y` int64 [N]; `synthetic` ones are no photos."""

    x: Images
    y: Indices
    synthetic: bool = False

    @classmethod
    def of(cls, data: Dataset, parts: Mapping[str, Indices] | None = None) -> Reference:
        """Take the reference part of a data source, or all of synthetic images; `parts`: its split, if it was made."""
        if data.synthetic:
            return cls(data.x, data.y, synthetic=True)
        part = (parts or split(data))["reference"]
        return cls(data.x[part], data.y[part])

    def drawn(self, shares: npt.NDArray[np.float64], count: int, rng: np.random.Generator) -> Indices:
        """Draw about `count` image numbers in proportion to class `shares` [C], at most all of a class."""
        chosen = []
        for c in np.flatnonzero(shares > 0):
            own = np.flatnonzero(self.y == c)
            wanted = min(len(own), max(1, round(count * float(shares[c]))))
            chosen.append(rng.choice(own, wanted, replace=False) if len(own) else own)
        return np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)

    def pack(self, each: int, rng: np.random.Generator) -> Indices:
        """Draw at most `each` images of every class, the pack that all phones receive; returns sorted image numbers."""
        parts = [np.flatnonzero(self.y == c) for c in np.unique(self.y)]
        return np.sort(np.concatenate([rng.choice(p, min(each, len(p)), replace=False) for p in parts]))


@dataclass(frozen=True, eq=False)
class ClusterPlan:
    """Hold one cluster's submodel with the reasons for its plan.

    Attributes:
        submodel: The submodel.
        why: By layer what was kept, and what removing the next block would have cost (`explanation.explain`).
        disagreement: Share of the validation images on which it differs from the full model; None where no tolerance
            was asked for.
    """

    submodel: Submodel
    why: list[dict[str, Any]]
    disagreement: float | None = None

    @property
    def plan(self) -> Plan:
        """Return the submodel's plan."""
        return self.submodel.plan


def cluster_classes(centroid: npt.NDArray[np.float64], coverage: float) -> Indices:
    """Choose the most used classes that together reach `coverage` of the usage [C], sorted."""
    order = np.argsort(-centroid, kind="stable")
    reached = np.cumsum(centroid[order])
    count = int(np.searchsorted(reached, coverage * reached[-1] - 1e-12)) + 1
    return np.sort(order[:count])


def plan_cluster(
    base: BaseModel,
    centroid: npt.NDArray[np.float64],
    reference: Reference,
    settings: Planner,
    factors: Any,
    seed: int,
    tiers: Sequence[Tier] = (),
) -> list[ClusterPlan]:
    """Plan one cluster's submodels, one for every tier (a single one without tiers).

    Args:
        base: The full model.
        centroid: The cluster's class usage [C].
        reference: The server's images, of which some are drawn in proportion to the usage.
        settings: The configuration's planner section.
        factors: Importance of filters by group, as for `Evidence.gather`.
        seed: Draws images.
        tiers: Device tiers.

    Raises:
        PlanError: No submodel can hold the limits of a tier, which is named.
    """
    if not settings.by_usage:
        centroid = np.full(len(centroid), 1 / len(centroid))
    classes = cluster_classes(centroid, settings.coverage if settings.by_usage else 1.0)
    shares = np.where(np.isin(np.arange(len(centroid)), classes), centroid, 0.0)
    rng = np.random.default_rng([seed, *classes])
    drawn = reference.drawn(shares / shares.sum(), settings.images, rng)
    held = rng.permutation(drawn)[: len(drawn) // 3] if settings.tolerance else drawn[:0]
    seen = drawn[~np.isin(drawn, held)]
    evidence = Evidence.gather(base, classes, reference.x[seen], importance=factors, seed=seed)
    return [_plan_tier(evidence, tier, settings, reference.x[held]) for tier in tiers or (None,)]


def _plan_tier(evidence: Evidence, tier: Tier | None, settings: Planner, held: Images) -> ClusterPlan:
    """Plan within `planner.macs` or, where images are `held` to verify it, above it by `tolerance`; within the tier."""
    base, disagreement = evidence.base, None
    try:
        if len(held):
            budget = tier_budget(tier, 1.0, settings.multiple)
            ratios = [settings.macs, *(ratio for ratio in RATIOS if ratio > settings.macs)]
            verified = smallest_within(evidence, budget, held, settings.tolerance, ratios)
            submodel, disagreement = verified.submodel, verified.disagreement
        else:
            submodel = evidence.submodel(tier_budget(tier, settings.macs, settings.multiple))
    except PlanError as error:
        raise PlanError(f"tier {tier.name}: {error}") if tier else error from None
    return ClusterPlan(submodel, explain(base.groups, evidence.curves, submodel.plan, settings.multiple), disagreement)
