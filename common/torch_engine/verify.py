"""Check channel groups on the network itself: removing channels must equal hiding them from their readers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from fedcaptor.common.errors import ModelError
from fedcaptor.common.groups import ChannelGroups, Consumer, Group
from fedcaptor.common.plan import Plan
from fedcaptor.common.slicer import slice_state
from fedcaptor.common.torch_engine.network import channels_back, channels_first, network, state_of


@torch.no_grad()
def verify(
    module: nn.Module, groups: ChannelGroups, seed: int = 0, tolerance: float = 1e-3, only: Group | None = None
) -> None:
    """Slice half of each group, or of one `only`, at random, and compare outputs with the full network's.

    In the full network each consumer reads zeros instead of the removed channels. Raises ModelError when outputs differ
    by more than `tolerance` of the largest output, or the sliced network does not run.
    """
    rng = np.random.default_rng(seed)
    tried = groups.groups if only is None else (only,)
    kept = {g.name: rng.choice(g.channels, -(-g.channels // 2), replace=False) for g in tried}
    plan = Plan.of(groups, kept)
    x = torch.from_numpy(rng.standard_normal((2, *groups.input_shape)).astype(np.float32))
    expected = hidden_outputs(module, groups, plan, x)
    try:
        found = network(copy.deepcopy(module), slice_state(state_of(module), groups, plan))(x)
        error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    except Exception as problem:  # forward functions of users raise whatever they stumble over
        raise ModelError(
            f"{groups.model} does not run when sliced ({problem}): avoid fixed channel numbers"
        ) from problem
    if not error <= tolerance:
        raise ModelError(
            f"{groups.model} answers otherwise when sliced (relative error {error:.2g}, at most {tolerance:.0e}): "
            "avoid operations over channels other than convolutions, linear layers and batch norms"
        )


def hidden_outputs(module: nn.Module, groups: ChannelGroups, plan: Plan, x: torch.Tensor) -> torch.Tensor:
    """Compute outputs [N, kept classes] of the full network that reads zeros instead of removed channels."""
    modules = dict(module.named_modules())

    def hide(consumer: Consumer, removed: torch.Tensor) -> Callable[..., Any]:
        elements = (removed[:, None] * consumer.taps + torch.arange(consumer.taps)).flatten() + consumer.offset

        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (channels_back(channels_first(inputs[0], module).index_fill(1, elements, 0.0), module), *inputs[1:])

        return hook

    handles = []
    for group in groups.prunable:
        removed = torch.from_numpy(
            np.setdiff1d(np.arange(group.channels), plan.kept.get(group.name, range(group.channels)))
        )
        handles += [modules[c.layer].register_forward_pre_hook(hide(c, removed)) for c in group.consumers]
    try:
        return module(x)[:, torch.from_numpy(plan.classes(groups))]
    finally:
        for handle in handles:
            handle.remove()
