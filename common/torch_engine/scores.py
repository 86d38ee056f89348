"""Score how much each channel contributes to each class: first-order Taylor scores (Molchanov et al. 2017) by class.

A gate multiplies a channel wherever it is read. The loss of closing it is, to first order, gate's gradient
∂L/∂gate = Σ a·∂L/∂a over map positions and consumers. Its absolute value, summed over the images of a class, is the
channel's score for the class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from fedcaptor.common.groups import ChannelGroups, Consumer
from fedcaptor.common.observations import consumers
from fedcaptor.common.preference import normalise
from fedcaptor.common.torch_engine.evidence import hooks
from fedcaptor.common.torch_engine.network import channels_back, channels_first


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Hold class-wise scores of all channels; those of several sets of images add up.

    Attributes:
        scores: float32 [channels, classes] by group, sums over images.
        presence: [classes], images of each class.
    """

    scores: dict[str, npt.NDArray[np.float32]]
    presence: npt.NDArray[np.int64]

    def __add__(self, other: ClassScores) -> ClassScores:
        if list(self.scores) != list(other.scores):
            raise ValueError("scores belong to different networks")
        summed = {name: score + other.scores[name] for name, score in self.scores.items()}
        return ClassScores(summed, self.presence + other.presence)


def normalised(scores: ClassScores) -> npt.NDArray[np.float32]:
    """Scale scores to [F, classes] over all prunable groups: unit L2 norm for every class in every group.

    Absent classes are zero.
    """
    return normalise(list(scores.scores.values()))


def gate_hook(consumer: Consumer, gate: torch.Tensor) -> Callable[..., tuple[Any, ...]]:
    """Make a forward pre-hook that multiplies the group's channels in a consumer's input by `gate` [N, channels]."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = channels_first(inputs[0], module)
        factor = gate.repeat_interleave(consumer.taps, 1) if consumer.taps > 1 else gate
        rest = x.shape[1] - consumer.offset - factor.shape[1]
        factor = functional.pad(factor, (consumer.offset, rest), value=1.0)
        # A copy: the product's gradient needs the values, which a later in-place activation may overwrite.
        gated = x.clone() * factor.view(*factor.shape, *[1] * (x.dim() - 2))
        return (channels_back(gated, module), *inputs[1:])

    return hook


def taylor_scores(
    model: nn.Module,
    groups: ChannelGroups,
    x: torch.Tensor,
    labels: npt.NDArray[np.integer[Any]] | torch.Tensor,
    batch: int = 32,
) -> ClassScores:
    """Score all prunable channels on normalised images x [N, C, H, W], one forward and backward pass a batch.

    `labels` [N] are the full model's own predictions. L is the cross-entropy of the label, so an image that the model
    is sure of weighs less than one near a border, where a channel matters. A channel that several layers read has one
    gate: its signed effects through all of them add up before the absolute value. Changes nothing in the model, which
    must be in eval mode.
    """
    targets = torch.as_tensor(labels, dtype=torch.long)
    totals = {g.name: torch.zeros(groups.classes, g.channels, dtype=torch.float64) for g in groups.prunable}
    for start in range(0, len(x), batch):
        part, target = x[start : start + batch], targets[start : start + batch]
        for name, score in image_scores(model, groups, part, target).items():
            totals[name].index_add_(0, target, score.double())
    presence = np.bincount(targets.numpy(), minlength=groups.classes).astype(np.int64)
    return ClassScores({name: total.T.float().contiguous().numpy() for name, total in totals.items()}, presence)


def image_scores(
    model: nn.Module, groups: ChannelGroups, x: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Score each channel for each image's own label, [N, channels] by group: what `taylor_scores` adds up."""
    modules = dict(model.named_modules())
    gates = {g.name: torch.ones(len(x), g.channels, requires_grad=True) for g in groups.prunable}
    handles = [
        modules[consumer.layer].register_forward_pre_hook(gate_hook(consumer, gates[group.name]))
        for group, consumer in consumers(groups)
    ]
    with torch.enable_grad(), hooks(handles):
        # In double precision a very sure prediction still has a gradient.
        loss = functional.cross_entropy(model(x).double(), labels, reduction="sum")
        found = torch.autograd.grad(loss, list(gates.values()), allow_unused=True, materialize_grads=True)
    return {name: gradient.abs() for name, gradient in zip(gates, found, strict=True)}
