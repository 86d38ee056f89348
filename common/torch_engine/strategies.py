"""Offer pruning strategies behind one interface: prepare once for a task, then build a submodel for any budget.

| name | what is removed first | source |
|---|---|---|
| `reconstruct` | what the other channels can stand in for; they absorb it | `common.selection`, `.reconstruction` |
| `reconstruct-agnostic` | as `reconstruct`, told nothing about classes | a control: what class-adaptivity brings |
| `reconstruct-fisher` | as `reconstruct`, an error between two classes counts by how likely both are | `.fisher` |
| `captor` | clusters of filters that prefer other than the target classes | Qin et al., ASP-DAC 2019, by gradients |
| `taylor` | filters of least first-order effect on the target classes | Molchanov et al., ICLR 2017 |
| `l1` | filters of least weight | Li et al., ICLR 2017 |
| `random` | any | a control |

All of them reduce the output layer to the target classes and let one planner choose how much each layer gives. The last
four leave the weights of kept channels as they are, `.recalibrate` helps them; `common.ranking` makes their scores
comparable between layers.
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
from fedcaptor.common.planner import Budget, allocate
from fedcaptor.common.plugins import resolve
from fedcaptor.common.ranking import by_class_preference, for_classes, rankable_groups, ranked, weight_norms
from fedcaptor.common.selection import PruningCurve
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
    """Say what to prune for.

    Attributes:
        base: The full model.
        classes: Target classes, labels that submodels are to answer with.
        images: Unlabelled images of these classes, uint8 [N, H, W, C].
        all_images: Unlabelled images of all classes, may be empty for most strategies (`SEE_ALL_CLASSES`).
        seed: Makes results repeatable.
    """

    base: BaseModel
    classes: Indices
    images: Images
    all_images: Images
    seed: int = 0


class SubmodelSource(Protocol):
    """Anything that builds submodels of one task for any budget."""

    def submodel(self, budget: Budget) -> Submodel:
        """Build the submodel within a budget. Raises PlanError for an impossible one."""


@dataclass(frozen=True, eq=False)
class PreparedStrategy:
    """Hold what a strategy has prepared for one task; it serves any number of budgets.

    Attributes:
        base: The full model.
        classes: Target classes, sorted labels [k].
        curves: Pruning curve of each group, by name.
        build: Turns a plan into a submodel.
    """

    base: BaseModel
    classes: Indices
    curves: Mapping[str, PruningCurve]
    build: Callable[[Plan], Submodel]

    @classmethod
    def by_scores(cls, task: Task, scores: Mapping[str, Floats]) -> PreparedStrategy:
        """Remove the channels of least score first; the others keep their weights.

        Args:
            task: What to prune for.
            scores: Scores [channels], not negative, of each group in `task.base.groups.prunable`. Scales of layers need
                not agree: `common.ranking`.
        """
        curves = ranked(task.base.groups, scores)
        return cls(task.base, np.unique(task.classes), curves, partial(sliced, task.base))

    def submodel(self, budget: Budget) -> Submodel:
        """Plan and build within a budget. Raises PlanError for an impossible one."""
        return self.build(allocate(self.base.groups, self.curves, self.classes, budget))


def prepare(name: str, task: Task) -> PreparedStrategy:
    """Prepare the strategy `name` for a task.

    Raises ConfigError for an unknown strategy, DataError without the images that it needs.
    """
    return strategy_of(name)(task)


def strategy_of(name: str) -> Callable[[Task], PreparedStrategy]:
    """Return the shipped strategy of that name, or one's own by `package.module:object`. Raises ConfigError."""
    if name in STRATEGIES:
        return STRATEGIES[name]
    own: Callable[[Task], PreparedStrategy] = resolve(name, "strategy", ", ".join(STRATEGIES))
    return own


def reconstruct(task: Task) -> PreparedStrategy:
    """Select to second order on the target classes; kept channels absorb the removed ones."""
    return _reconstructing(task, Evidence.gather(task.base, task.classes, task.images, seed=task.seed))


def reconstruct_agnostic(task: Task) -> PreparedStrategy:
    """Do as `reconstruct` on all classes' images and logits; only the output layer knows the target classes."""
    everything = np.arange(task.base.groups.classes)
    return _reconstructing(task, Evidence.gather(task.base, everything, task.all_images, seed=task.seed))


def reconstruct_fisher(task: Task) -> PreparedStrategy:
    """Do as `reconstruct`, with the Fisher form of the outputs' sensitivity."""
    sensitivity = fisher_sensitivity
    return _reconstructing(
        task, Evidence.gather(task.base, task.classes, task.images, seed=task.seed, sensitivity=sensitivity)
    )


def _reconstructing(task: Task, evidence: Evidence) -> PreparedStrategy:
    """Reconstruct weights on the images of `evidence`, for the task's classes."""
    return PreparedStrategy(task.base, np.unique(task.classes), evidence.curves, evidence.build)


def captor(task: Task) -> PreparedStrategy:
    """Remove clusters of filters by class preference, first those that prefer other than the target classes.

    The paper's abstract leaves open how preference is measured, how layers share the budget and how filters of a
    cluster are ranked: here by class-wise Taylor scores, its pictures of filters are not used.
    """
    target_classes = np.unique(task.classes)
    found = _class_scores(task.base, task.all_images, np.arange(task.base.groups.classes))
    curves = by_class_preference(task.base.groups, found.scores, found.presence, target_classes, seed=task.seed)
    return PreparedStrategy(task.base, target_classes, curves, partial(sliced, task.base))


def taylor(task: Task) -> PreparedStrategy:
    """Rank by the first-order effect of closing a filter, summed over the target classes, which weigh alike."""
    target_classes = np.unique(task.classes)
    found = _class_scores(task.base, task.images, target_classes)
    return PreparedStrategy.by_scores(task, for_classes(found.scores, found.presence, target_classes))


def l1(task: Task) -> PreparedStrategy:
    """Rank by the L1 norm of the filters' weights, whatever the target classes."""
    return PreparedStrategy.by_scores(task, weight_norms(task.base.groups, task.base.state))


def random(task: Task) -> PreparedStrategy:
    """Rank by scores drawn from the seed, uniform in each layer."""
    rng = np.random.default_rng(task.seed)
    groups = rankable_groups(task.base.groups)
    return PreparedStrategy.by_scores(task, {group.name: rng.uniform(size=group.channels) for group in groups})


STRATEGIES: dict[str, Callable[[Task], PreparedStrategy]] = {
    "reconstruct": reconstruct,
    "reconstruct-agnostic": reconstruct_agnostic,
    "reconstruct-fisher": reconstruct_fisher,
    "captor": captor,
    "taylor": taylor,
    "l1": l1,
    "random": random,
}


def _class_scores(base: BaseModel, images: Images, among: Indices) -> ClassScores:
    """Compute class-wise Taylor scores of unlabelled images; their labels are the full model's answers `among` some."""
    if len(images) == 0:
        raise DataError("0 calibration images, at least 1 is needed: give images of the target classes")
    x = normalise(images, base.mean, base.std)
    return taylor_scores(base.module, base.groups, x, among[logits(base.module, x)[:, among].argmax(1)])
