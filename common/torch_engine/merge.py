"""Merging: the kept channels absorb the removed ones, layer after layer, without training.

Every consumer of the cut model is given new weights W·A and a constant W·b, where x_full ≈ A·x_cut + b is regressed
on what the *cut* model delivers there, so that the error of earlier layers is corrected on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from common.groups import ChannelGroups, Consumer, Group, State
from common.plan import Plan
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

    `full`: the full model's observations of the same images and positions (`collect_rows` with the same sampler).
    A consumer behind a concatenation keeps its plain slice.
    """
    modules = dict(cut.named_modules())
    kept_outputs = kept_elements(groups, plan)

    def absorb(group: Group, consumer: Consumer) -> Callable[..., None]:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            index = plan.kept[group.name]
            if inputs[0].shape[1] != len(index) * consumer.taps:
                return
            seen = observe(inputs[0], len(index), consumer, sampler)
            matrix, constant = reconstruction(
                full[consumer.layer].astype("float64"),
                seen.astype("float64"),
                index,
                ridge,
                constant=module.bias is not None or consumer.norm is not None,
            )
            name = f"{consumer.layer}.weight"
            weight = torch.from_numpy(base[name])
            if (name, 0) in kept_outputs:
                weight = weight[torch.from_numpy(kept_outputs[name, 0])]
            weight = consumer_weight(weight, group.channels, consumer).double()
            merged = torch.einsum("oct,ck->okt", weight, torch.from_numpy(matrix))
            shift = torch.einsum("oct,c->o", weight, torch.from_numpy(constant)).float()
            if module.bias is not None:
                module.bias += shift
            elif consumer.norm is not None:
                norm: Any = modules[consumer.norm]
                norm.running_mean -= shift
            module.weight.copy_(merged.float().reshape(module.weight.shape))

        return hook

    merging = [(g, c) for g, c in consumers(groups) if g.name in plan.kept]
    with hooks([modules[c.layer].register_forward_pre_hook(absorb(g, c)) for g, c in merging]):
        cut(x)
