"""Merging: the kept channels absorb the removed ones, layer after layer, without training.

Every consumer of the cut model is given new weights W·A and a constant W·b, where x_full ≈ A·x_cut + b is regressed
on what the *cut* model delivers there, so that the error of earlier layers is corrected on the way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from common.groups import ChannelGroups, Consumer, Group, State
from common.plan import Indices, Plan
from common.selection import reconstruction
from common.slicer import kept_elements
from common.torch_engine.evidence import Rows, Sampler, consumer_weight, consumers, hooks, observe


@torch.no_grad()
def merge(
    cut: nn.Module,
    base: State,
    groups: ChannelGroups,
    plan: Plan,
    x: torch.Tensor,
    full: Rows,
    sampler: Sampler,
    ridge: float = 0.01,
) -> None:
    """Merge in place, in one forward pass of the cut model over all images `x` [N, C, H, W].

    `full`: the full model's observations of the same images and positions (`recorded` with the same sampler).
    """
    modules = dict(cut.named_modules())
    kept = kept_elements(groups, plan)
    inputs: dict[str, list[tuple[Group, Consumer]]] = defaultdict(list)
    for group, consumer in consumers(groups):
        if group.name in plan.kept:
            inputs[consumer.layer].append((group, consumer))
    merging = [_Layer(modules, parts, base, plan, kept, full, sampler, ridge) for parts in inputs.values()]
    with hooks([modules[layer.name].register_forward_pre_hook(layer.absorb) for layer in merging]):
        cut(x)


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer of the cut model with the groups that it reads: several of them behind a concatenation."""

    modules: dict[str, Any]
    parts: Sequence[tuple[Group, Consumer]]
    base: State
    plan: Plan
    kept: dict[tuple[str, int], Indices]
    full: Rows
    sampler: Sampler
    ridge: float

    @property
    def name(self) -> str:
        return self.parts[0][1].layer

    def absorb(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        """New weights and constant, from the cut model's own input, just before the layer uses them."""
        weight = module.weight.flatten(2) if module.weight.dim() > 2 else module.weight.unsqueeze(2)
        shift = torch.zeros(len(weight))
        for group, consumer in self.parts:
            start = self._start(group, consumer)
            merged, constant = self._merged(module, group, consumer, inputs[0], start)
            weight[:, start : start + merged.shape[1]] = merged  # a view: the module's own weights
            shift += constant
        norm = self.parts[0][1].norm
        if module.bias is not None:
            module.bias += shift
        elif norm is not None:
            self.modules[norm].running_mean -= shift

    def _start(self, group: Group, consumer: Consumer) -> int:
        """Where the group's kept channels begin in the cut layer's input."""
        before = self.kept.get((f"{self.name}.weight", 1))
        first = consumer.offset + int(self.plan.kept[group.name][0]) * consumer.taps
        return first if before is None else int(np.searchsorted(before, first))

    def _merged(
        self, module: Any, group: Group, consumer: Consumer, x: torch.Tensor, start: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights [O, K·taps, kernel] that read the kept channels for all of the group's, and a constant [O]."""
        index = self.plan.kept[group.name]
        matrix, constant = reconstruction(
            self.full[group.name, self.name].astype("float64"),
            observe(x, len(index), consumer, self.sampler, start).astype("float64"),
            index,
            self.ridge,
            constant=module.bias is not None or consumer.norm is not None,
        )
        weight = torch.from_numpy(self.base[f"{self.name}.weight"])
        outputs = self.kept.get((f"{self.name}.weight", 0))
        if outputs is not None:
            weight = weight[torch.from_numpy(outputs)]
        weight = consumer_weight(weight, group.channels, consumer).double()  # [O, C, taps · kernel]
        merged = torch.einsum("oct,ck->okt", weight, torch.from_numpy(matrix)).float()
        shift = torch.einsum("oct,c->o", weight, torch.from_numpy(constant)).float()
        return merged.reshape(len(merged), len(index) * consumer.taps, -1), shift
