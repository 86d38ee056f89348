"""From centroids to plans: what each preference cluster's submodel keeps, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.config import Planner
from common.plan import Indices, Plan
from common.planner import Budget, explain
from common.torch_engine.base import BaseModel, Submodel
from common.torch_engine.forward import Images
from common.torch_engine.prune import Evidence


@dataclass(frozen=True, eq=False)
class Reference:
    """The server's own labelled images: `x` uint8 [N, H, W, C], `y` int64 [N]."""

    x: Images
    y: Indices

    def drawn(self, shares: npt.NDArray[np.float64], count: int, rng: np.random.Generator) -> Indices:
        """About `count` image numbers in proportion to class `shares` [C], at most all of a class."""
        chosen = []
        for c in np.flatnonzero(shares > 0):
            own = np.flatnonzero(self.y == c)
            wanted = min(len(own), max(1, round(count * float(shares[c]))))
            chosen.append(rng.choice(own, wanted, replace=False) if len(own) else own)
        return np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)

    def pack(self, each: int, rng: np.random.Generator) -> Indices:
        """Image numbers of at most `each` images of every class: the pack that all phones receive."""
        parts = [np.flatnonzero(self.y == c) for c in np.unique(self.y)]
        return np.sort(np.concatenate([rng.choice(p, min(each, len(p)), replace=False) for p in parts]))


@dataclass(frozen=True, eq=False)
class ClusterPlan:
    """`why`: per layer what was kept and what the next cut would have cost (`planner.explain`)."""

    submodel: Submodel
    why: list[dict[str, Any]]

    @property
    def plan(self) -> Plan:
        return self.submodel.plan


def cluster_classes(centroid: npt.NDArray[np.float64], coverage: float) -> Indices:
    """The most used classes that together reach `coverage` of the usage, sorted."""
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
) -> ClusterPlan:
    """Plan and submodel of one cluster from reference images in proportion to its usage."""
    if not settings.by_usage:
        centroid = np.full(len(centroid), 1 / len(centroid))
    classes = cluster_classes(centroid, settings.coverage if settings.by_usage else 1.0)
    shares = np.where(np.isin(np.arange(len(centroid)), classes), centroid, 0.0)
    rng = np.random.default_rng([seed, *classes])
    images = reference.x[reference.drawn(shares / shares.sum(), settings.images, rng)]
    evidence = Evidence.gather(base, classes, images, importance=factors, seed=seed)
    submodel = evidence.submodel(Budget(settings.macs, settings.multiple))
    return ClusterPlan(submodel, explain(base.groups, evidence.curves, submodel.plan, settings.multiple))
