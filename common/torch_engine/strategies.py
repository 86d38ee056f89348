"""Pruning strategies behind one interface: evidence once, then a submodel for any budget.

| name | what goes first | source |
|---|---|---|
| `reconstruct` | what the other channels can stand in for; they absorb it | `common.selection`, `.merge` here |
| `reconstruct-agnostic` | the same, told nothing about classes | a control: what class-adaptivity brings |
| `reconstruct-fisher` | the same, an error between two classes counts by how likely both are | `.fisher` |
| `captor` | clusters of filters that prefer unneeded classes | Qin et al., ASP-DAC 2019, its gradient analysis |
| `taylor` | filters of least first-order effect on the needed classes | Molchanov et al., ICLR 2017 |
| `l1` | filters of least weight | Li et al., ICLR 2017 |
| `random` | any | a control |

All of them reduce the output layer to the needed classes and let the same planner choose how much each layer gives.
The last four cut and leave the other weights as they are, `.recalibrate` helps them; how their scores become comparable
between layers: `common.ranking`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.errors import DataError
from fedcaptor.common.plan import Plan
from fedcaptor.common.planner import Budget, plan
from fedcaptor.common.plugins import resolve
from fedcaptor.common.ranking import by_class_preference, cut, for_classes, ranked, weight_norms
from fedcaptor.common.selection import RemovalCurve
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.factory import sliced
from fedcaptor.common.torch_engine.fisher import fisher_sensitivity
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.prune import Evidence
from fedcaptor.common.torch_engine.scores import ClassScores, taylor_scores

SEE_ALL_CLASSES = frozenset({"reconstruct-agnostic", "captor"})
"""Strategies that look at `Task.all_images`; the others may be given none."""


@dataclass(frozen=True, eq=False)
class Task:
    """What to prune for. `images` uint8 [N, H, W, C]: unlabelled, of the needed `classes`; `all_images`: of all."""

    base: BaseModel
    classes: Indices
    images: Images
    all_images: Images
    seed: int = 0


class Prepared(Protocol):
    """Evidence of one task: serves a ladder of budgets."""

    def submodel(self, budget: Budget) -> Submodel:
        """Raises PlanError for an impossible budget."""


@dataclass(frozen=True, eq=False)
class Selection:
    """A strategy's evidence: a removal curve of each group, and how a plan becomes a submodel."""

    base: BaseModel
    classes: Indices
    curves: Mapping[str, RemovalCurve]
    build: Callable[[Plan], Submodel]

    @classmethod
    def by_scores(cls, task: Task, scores: Mapping[str, Floats]) -> Selection:
        """Cut the channels of least score first; the others keep their weights.

        Args:
            task: What to prune for.
            scores: Scores [channels], not negative, of each group in `task.base.groups.prunable`. Scales of layers need
                not agree: `common.ranking`.
        """
        curves = ranked(task.base.groups, scores)
        return cls(task.base, np.unique(task.classes), curves, partial(sliced, task.base))

    def submodel(self, budget: Budget) -> Submodel:
        """Plan and build. Raises PlanError for an impossible budget."""
        return self.merged(plan(self.base.groups, self.curves, self.classes, budget))

    def merged(self, chosen: Plan) -> Submodel:
        """The submodel of any plan."""
        return self.build(chosen)


def prepare(name: str, task: Task) -> Selection:
    """Evidence of the strategy `name`. Raises ConfigError for an unknown one, DataError without the images it needs."""
    return strategy_of(name)(task)


def strategy_of(name: str) -> Callable[[Task], Selection]:
    """The shipped strategy of that name, or one's own by `package.module:object`. Raises ConfigError."""
    if name in STRATEGIES:
        return STRATEGIES[name]
    own: Callable[[Task], Selection] = resolve(name, "strategy", ", ".join(STRATEGIES))
    return own


def reconstruct(task: Task) -> Selection:
    """Second-order selection on the needed classes, kept channels absorb the removed ones."""
    return _merging(task, Evidence.gather(task.base, task.classes, task.images, seed=task.seed))


def reconstruct_agnostic(task: Task) -> Selection:
    """The same on all classes' images and logits; only the output layer knows which classes are needed."""
    everything = np.arange(task.base.groups.classes)
    return _merging(task, Evidence.gather(task.base, everything, task.all_images, seed=task.seed))


def reconstruct_fisher(task: Task) -> Selection:
    """As `reconstruct`, with the Fisher form of the outputs' sensitivity."""
    sensitivity = fisher_sensitivity
    return _merging(
        task, Evidence.gather(task.base, task.classes, task.images, seed=task.seed, sensitivity=sensitivity)
    )


def _merging(task: Task, evidence: Evidence) -> Selection:
    return Selection(task.base, np.unique(task.classes), evidence.curves, evidence.merged)


def captor(task: Task) -> Selection:
    """Clusters of filters by class preference, those of unneeded classes first.

    The paper's abstract leaves open how preference is measured, how layers share the budget and how filters of a
    cluster are ranked: here by class-wise Taylor scores, its pictures of filters are not used.
    """
    needed = np.unique(task.classes)
    found = _class_scores(task.base, task.all_images, np.arange(task.base.groups.classes))
    curves = by_class_preference(task.base.groups, found.scores, found.presence, needed, seed=task.seed)
    return Selection(task.base, needed, curves, partial(sliced, task.base))


def taylor(task: Task) -> Selection:
    """First-order effect of closing a filter, summed over the needed classes, each with the same say."""
    needed = np.unique(task.classes)
    found = _class_scores(task.base, task.images, needed)
    return Selection.by_scores(task, for_classes(found.scores, found.presence, needed))


def l1(task: Task) -> Selection:
    """L1 norm of the filters' weights; the same for every set of classes."""
    return Selection.by_scores(task, weight_norms(task.base.groups, task.base.state))


def random(task: Task) -> Selection:
    """Scores drawn from the seed, uniform in each layer."""
    rng = np.random.default_rng(task.seed)
    return Selection.by_scores(task, {group.name: rng.uniform(size=group.channels) for group in cut(task.base.groups)})


STRATEGIES: dict[str, Callable[[Task], Selection]] = {
    "reconstruct": reconstruct,
    "reconstruct-agnostic": reconstruct_agnostic,
    "reconstruct-fisher": reconstruct_fisher,
    "captor": captor,
    "taylor": taylor,
    "l1": l1,
    "random": random,
}


def _class_scores(base: BaseModel, images: Images, among: Indices) -> ClassScores:
    """Class-wise Taylor scores of unlabelled images; their classes are the full model's answers `among` some."""
    if len(images) == 0:
        raise DataError("0 calibration images, at least 1 is needed: give images of the needed classes")
    x = normalise(images, base.mean, base.std)
    return taylor_scores(base.module, base.groups, x, among[logits(base.module, x)[:, among].argmax(1)])
