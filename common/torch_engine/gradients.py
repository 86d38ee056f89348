"""Score filters class by class in the forms that "gradient analysis" may mean (Qin et al., ASP-DAC 2019).

a is the filter's map as the layers behind it read it, w the filter's weights, L the loss of one image:

| score | of one image | what it says |
|---|---|---|
| `taylor` | abs(Σ a·∂L/∂a) | first-order size of the effect of closing the filter (`.scores`) |
| `signed-taylor` | -Σ a·∂L/∂a | first-order rise in the loss: images that gain and that lose cancel |
| `map-gradient` | Σ abs(∂L/∂a) | sensitivity of the loss to the map, whatever is in it |
| `weight-gradient` | Σ abs(∂L/∂w) | sensitivity of the loss to the weights |

All are sums over the images of a class, and so over batches: `ClassScores` add up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from fedcaptor.common.arrays import Indices
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.observations import consumers, consuming_layers
from fedcaptor.common.ranking import rankable_groups, weight_norms
from fedcaptor.common.torch_engine.evidence import hooks
from fedcaptor.common.torch_engine.network import channels_back, channels_first
from fedcaptor.common.torch_engine.scores import ClassScores, taylor_scores

Score = Callable[[nn.Module, ChannelGroups, torch.Tensor, Indices], ClassScores]
"""Takes (model, groups, normalised x [N, C, H, W], labels [N]); changes nothing in the model, which is in eval mode."""

MapScore = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes filters' maps and their gradients [N, channels, positions], gives each image's score [N, channels]."""


def signed_taylor_scores(model: nn.Module, groups: ChannelGroups, x: torch.Tensor, labels: Indices) -> ClassScores:
    """Score by signed first-order effect: negative for a filter whose closing lowers the loss of a class."""
    return _at_readers(model, groups, x, labels, lambda a, gradient: -(a * gradient).sum(2))


def map_gradient_scores(model: nn.Module, groups: ChannelGroups, x: torch.Tensor, labels: Indices) -> ClassScores:
    """Score by the gradient at the filter's map, summed over the layers that read it."""
    return _at_readers(model, groups, x, labels, lambda a, gradient: gradient.abs().sum(2))


def weight_gradient_scores(model: nn.Module, groups: ChannelGroups, x: torch.Tensor, labels: Indices) -> ClassScores:
    """Score by the gradient at the filter's weights, summed over the layers that make the channel.

    Images are taken one at a time: a batch's gradients are a sum.
    """
    names = [f"{layer}.weight" for group in rankable_groups(groups) for layer in group.producers]
    weights = {name: model.get_parameter(name).detach().requires_grad_() for name in dict.fromkeys(names)}
    totals = _zeros(groups)
    for image, label in zip(x.split(1), _targets(labels), strict=True):
        with torch.enable_grad():
            loss = _loss(torch.func.functional_call(model, weights, image), label[None])
            found = torch.autograd.grad(loss, list(weights.values()))
        gradients = {name: gradient.numpy() for name, gradient in zip(weights, found, strict=True)}
        for name, norm in weight_norms(groups, gradients).items():
            totals[name][:, label] += norm
    return _class_scores(totals, labels, groups.classes)


SCORES: dict[str, Score] = {
    "taylor": taylor_scores,
    "signed-taylor": signed_taylor_scores,
    "map-gradient": map_gradient_scores,
    "weight-gradient": weight_gradient_scores,
}


def _at_readers(
    model: nn.Module, groups: ChannelGroups, x: torch.Tensor, labels: Indices, map_score: MapScore, batch: int = 32
) -> ClassScores:
    """Score maps where the groups are read, one forward and backward pass a batch."""
    totals = _zeros(groups)
    for part, target in zip(x.split(batch), _targets(labels).split(batch), strict=True):
        with torch.enable_grad(), _read(model, consuming_layers(groups)) as maps:
            loss = _loss(model(part), target)
            found = dict(zip(maps, torch.autograd.grad(loss, list(maps.values())), strict=True))
        for group, consumer in consumers(groups):
            own = slice(consumer.offset, consumer.offset + group.channels * consumer.taps)
            a, gradient = (
                each[consumer.layer].detach()[:, own].reshape(len(part), group.channels, -1) for each in (maps, found)
            )
            np.add.at(totals[group.name].T, target.numpy(), map_score(a, gradient).double().numpy())
    return _class_scores(totals, labels, groups.classes)


@contextlib.contextmanager
def _read(model: nn.Module, layers: list[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Record what each of these layers reads, by name, of the images that the model sees inside the block.

    Each has a copy of its own: a map's gradient is that through one reader, and later in-place layers leave it alone.
    """
    modules, maps = dict(model.named_modules()), dict[str, torch.Tensor]()

    def watch(layer: str) -> Callable[..., tuple[Any, ...]]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            copy = channels_first(inputs[0], module).clone()
            maps[layer] = copy if copy.requires_grad else copy.requires_grad_()
            return (channels_back(maps[layer], module), *inputs[1:])

        return hook

    with hooks([modules[layer].register_forward_pre_hook(watch(layer)) for layer in layers]):
        yield maps


def _loss(z: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Sum the cross-entropy over images; in double precision a very sure prediction still has a gradient."""
    return functional.cross_entropy(z.double(), target, reduction="sum")


def _targets(labels: Indices) -> torch.Tensor:
    return torch.as_tensor(labels, dtype=torch.long)


def _zeros(groups: ChannelGroups) -> dict[str, npt.NDArray[np.float64]]:
    """Begin sums of scores by group."""
    return {group.name: np.zeros((group.channels, groups.classes)) for group in rankable_groups(groups)}


def _class_scores(totals: dict[str, npt.NDArray[np.float64]], labels: Indices, classes: int) -> ClassScores:
    """Wrap sums of scores with the number of images of each class."""
    presence = np.bincount(np.asarray(labels), minlength=classes).astype(np.int64)
    return ClassScores({name: total.astype(np.float32) for name, total in totals.items()}, presence)
