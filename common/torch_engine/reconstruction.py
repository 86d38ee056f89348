"""Reconstruct the weights of a sliced network with torch, by the rules of `fedcaptor.common.reconstruction`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.observations import consumers
from fedcaptor.common.plan import Plan
from fedcaptor.common.reconstruction import ALIKE, RIDGE, ROUNDS
from fedcaptor.common.slicer import kept_elements
from fedcaptor.common.torch_engine.evidence import Response, hooks
from fedcaptor.common.torch_engine.fitting import LeastSquares, unfold_inputs


@torch.no_grad()
def reconstruct_weights(
    sliced: nn.Module,
    groups: ChannelGroups,
    plan: Plan,
    x: torch.Tensor,
    full: Mapping[str, Response],
    ridge: float = RIDGE,
) -> None:
    """Reconstruct weights in place, in one forward pass of the sliced model over all images.

    Args:
        sliced: The network that `plan` leaves; its weights and batch norms change.
        groups: Channel groups of the full network.
        plan: Which channels were kept.
        x: Normalised images [N, C, H, W].
        full: The full model's responses to the same images, by layer.
        ridge: Observations that the sliced weights count as in a layer that has one of each image.
    """
    modules = dict(sliced.named_modules())
    kept = kept_elements(groups, plan)
    reading = {consumer.layer: consumer for group, consumer in consumers(groups) if group.name in plan.kept}
    handles = []
    for name, consumer in reading.items():
        outputs, wanted = kept.get((f"{name}.weight", 0)), full[name].values
        own = wanted if outputs is None else wanted[:, torch.from_numpy(outputs)]
        norm = modules[consumer.norm] if consumer.norm else None
        layer = _Layer(norm, consumer.rectified, Response(own, full[name].positions), ridge)
        handles.append(modules[name].register_forward_pre_hook(layer.fit))
    with hooks(handles):
        sliced(x)


@dataclass(frozen=True, eq=False)
class _Layer:
    """Fit one layer of the sliced model: the batch norm and rectifier that follow it, and what it should answer."""

    norm: Any
    rectified: float | None
    wanted: Response
    ridge: float

    def fit(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        """Set new weights and constant, from the sliced model's own input, just before the layer uses them."""
        affine = module.bias is not None or self.norm is not None
        seen = unfold_inputs(inputs[0], module, self.wanted.positions)
        ridge = self.ridge * len(self.wanted.positions) ** ALIKE
        squares = LeastSquares(seen, module.weight.flatten(1), ridge, affine)
        weight, constant = squares.fit(self.wanted.values)
        for _ in range(ROUNDS if self.rectified is not None else 0):
            found = torch.addmm(constant, seen, weight.T)
            weight, constant = squares.fit(self._open(found))
        module.weight.copy_(weight.view_as(module.weight))
        if module.bias is not None:
            module.bias.copy_(constant)
        elif self.norm is not None:
            self.norm.running_mean -= constant

    def _open(self, found: torch.Tensor) -> torch.Tensor:
        """Choose targets [R, O]: what is wanted where the rectifier opens, what was `found` where both are closed."""
        scale, shift = self._normalised()
        wanted, found = self.wanted.values * scale + shift, found * scale + shift
        low, high = torch.zeros(()), torch.tensor(self.rectified)
        target = torch.where(wanted > low, wanted, found.minimum(low))
        target = torch.where(wanted < high, target, found.maximum(high))
        return (target - shift) / scale

    def _normalised(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scale and shift [O] of the batch norm, one and zero without."""
        norm, one = self.norm, torch.ones(self.wanted.values.shape[1])
        if norm is None:
            return one, one * 0
        scale = (one if norm.weight is None else norm.weight) / (norm.running_var + norm.eps).sqrt()
        scale = torch.where(scale.abs() < 1e-6, 1e-6, scale)  # a dead channel's constant is all that counts
        return scale, (one * 0 if norm.bias is None else norm.bias) - norm.running_mean * scale
