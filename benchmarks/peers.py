"""Torch-Pruning (Fang et al., CVPR 2023) on the same weights, target classes, budgets and unlabelled images.

Global pruning of the full model limited to the target classes, channels in multiples of 8, gradients of the full model;
the one ratio that Torch-Pruning takes is searched for each budget. One draw of five classes on `small-cnn`, before
training: a hundred small steps did worse, with those gradients and with gradients taken anew on the cut network.
Labels are the full model's own predictions among the target classes. What was cut is read off as a plan, so that one
code counts MACs, recalibrates and tunes peers and us.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedcaptor.common.arrays import Indices
from fedcaptor.common.errors import PlanError
from fedcaptor.common.plan import Plan
from fedcaptor.common.planner import Budget
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.factory import sliced
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.strategies import Task

HALVINGS = 9
STEPS = (1, 5, 20)
"""Iterative steps, tried in this order until a budget holds: a layer that one step would empty is left whole."""

MULTIPLE = 8

Gradients = Callable[[nn.Module, torch.Tensor, torch.Tensor], None]
"""Puts into `.grad` what an importance reads, from normalised images and labels [N]."""


def mean_gradient(network: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> None:
    """Take ∂L/∂w of the mean cross-entropy."""
    for images, target in zip(x.split(64), labels.split(64), strict=True):
        (functional.cross_entropy(network(images), target, reduction="sum") / len(x)).backward()


def squared_gradients(network: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> None:
    """Take the mean over images of (∂L/∂w)², the Hessian's diagonal.

    `GroupHessianImportance.accumulate_grad` of 1.6.1 looks sums up under another key than it stores them and so keeps
    the last image alone; here it is given the mean that its documentation describes.
    """
    weights = list(network.parameters())
    sums = [torch.zeros_like(weight) for weight in weights]
    for image, target in zip(x.split(1), labels.split(1), strict=True):
        found = torch.autograd.grad(functional.cross_entropy(network(image), target), weights)
        for total, gradient in zip(sums, found, strict=True):
            total.addcmul_(gradient, gradient, value=1 / len(x))
    for weight, total in zip(weights, sums, strict=True):
        weight.grad = total


def no_gradient(network: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> None:
    """Leave gradients out, for an importance that reads weights alone."""


@dataclass(frozen=True, eq=False)
class Peer:
    """`network`: the full model limited to the target classes (plan `limited`), with gradients. `found`: plans by
    (steps, pruning ratio), for all budgets.
    """

    base: BaseModel
    limited: Plan
    network: nn.Module
    importance: Any
    found: dict[tuple[int, float], Plan] = field(default_factory=dict)

    @classmethod
    def prepare(cls, task: Task, importance: Any, gradients: Gradients) -> Peer:
        """Take the gradients, on `task.images` alone."""
        groups = task.base.groups
        every = {group.name: np.arange(group.channels) for group in groups.prunable}
        limited = Plan.of(groups, {**every, groups.output.name: task.classes})
        network = sliced(task.base, limited).module.requires_grad_(True)
        x = normalise(task.images, task.base.mean, task.base.std)
        gradients(network, x, torch.from_numpy(logits(network, x).argmax(1)))
        return cls(task.base, limited, network, importance)

    def submodel(self, budget: Budget) -> Submodel:
        """Return the largest found that holds the budget. Raises PlanError when Torch-Pruning reaches none."""
        for steps in STEPS:
            plan = self._largest(budget, steps)
            if plan is not None:
                return sliced(self.base, plan)
        smallest = min(self.found.values(), key=lambda plan: self.base.groups.macs(plan.counts()))
        broken = "; ".join(budget.broken(self.base.groups, smallest.counts()))
        raise PlanError(f"{broken} is the nearest that Torch-Pruning reaches: raise the budget")

    def _largest(self, budget: Budget, steps: int) -> Plan | None:
        groups, low, high = self.base.groups, 0.0, 1.0
        held: list[Plan] = []
        for _ in range(HALVINGS):
            ratio = (low + high) / 2
            if (steps, ratio) not in self.found:
                self.found[steps, ratio] = self.cut(ratio, steps)[0]
            plan = self.found[steps, ratio]
            if budget.broken(groups, plan.counts()):
                low = ratio
            else:
                held.append(plan)
                high = ratio
        return max(held, key=lambda plan: groups.macs(plan.counts()), default=None)

    def cut(self, ratio: float, steps: int) -> tuple[Plan, nn.Module]:
        """Prune `ratio` of all channels; return what was kept, and the network as Torch-Pruning itself leaves it."""
        network, kept = self._copy(), dict(self.limited.kept)
        pruner = self._pruner(network, ratio, steps)
        names = {module: name for name, module in network.named_modules()}
        for _ in range(steps):
            for group in pruner.step(interactive=True):
                for name, gone in _removed(pruner, group, names, kept).items():
                    kept[name] = np.delete(kept[name], gone)
                group.prune()
        return Plan.of(self.base.groups, kept), network

    def _pruner(self, network: nn.Module, ratio: float, steps: int) -> Any:
        import torch_pruning

        return torch_pruning.pruner.BasePruner(
            network,
            torch.zeros(1, *self.base.groups.input_shape),
            self.importance,
            global_pruning=True,
            pruning_ratio=ratio,
            iterative_steps=steps,
            ignored_layers=[network.get_submodule(self.base.groups.output.name)],
            round_to=MULTIPLE,
            in_channel_groups={},  # the library's defaults are shared between pruners
            out_channel_groups={},
            num_heads={},
        )

    def _copy(self) -> nn.Module:
        """Copy with its gradients, which copying a module leaves behind."""
        network = sliced(self.base, self.limited).module.requires_grad_(True)
        for weight, measured in zip(network.parameters(), self.network.parameters(), strict=True):
            weight.grad = None if measured.grad is None else measured.grad.clone()
        return network


def _removed(
    pruner: Any, group: Any, names: Mapping[nn.Module, str], kept: Mapping[str, Indices]
) -> dict[str, Indices]:
    """Return the channels that go, numbered as they are now, by our name of their group: its first producer."""
    found = {}
    for dependency, index in group:
        name = names.get(dependency.target.module, "")
        if name in kept and pruner.DG.is_out_channel_pruning_fn(dependency.handler):
            found[name] = np.unique(np.asarray(index, np.int64))
    return found


def taylor(task: Task) -> Peer:
    """Prune by first-order Taylor scores of weights, summed over a group (Molchanov et al., CVPR 2019)."""
    from torch_pruning.pruner.importance import GroupTaylorImportance

    return Peer.prepare(task, GroupTaylorImportance(), mean_gradient)


def group_norm(task: Task) -> Peer:
    """Prune by the L2 norm of a group's weights, without the sparse training that may come before it."""
    from torch_pruning.pruner.importance import GroupMagnitudeImportance

    return Peer.prepare(task, GroupMagnitudeImportance(p=2), no_gradient)


def hessian(task: Task) -> Peer:
    """Prune by optimal brain damage by groups: w² times the mean squared gradient."""
    from torch_pruning.pruner.importance import GroupHessianImportance

    return Peer.prepare(task, GroupHessianImportance(), squared_gradients)


PEERS: dict[str, Callable[[Task], Peer]] = {
    "torch-pruning-taylor": taylor,
    "torch-pruning-group-norm": group_norm,
    "torch-pruning-hessian": hessian,
}
