"""Observe a network on images of the target classes: the raw material of calibration statistics.

What is observed are channels at each consumer's input, layers' outputs, and the sensitivity of the target classes'
logits to errors there. Unlabelled images suffice: forward passes, and one backward pass a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedcaptor.common.arrays import Floats, Indices
from fedcaptor.common.groups import ChannelGroups, Consumer, Group
from fedcaptor.common.observations import Rows, Sampler, consumers, consuming_layers
from fedcaptor.common.torch_engine.network import channels_back, channels_first


@contextlib.contextmanager
def hooks(handles: list[Any]) -> Iterator[None]:
    """Remove these hooks when the block ends, whatever happens inside."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def observe(
    x: torch.Tensor, channels: int, consumer: Consumer, sampler: Sampler, offset: int
) -> npt.NDArray[np.float32]:
    """Take observations [R, channels] out of a consumer's input `x`, [N, C·taps, H, W] or [N, C·taps].

    The group's channels begin at element `offset`.
    """
    maps = x[:, offset : offset + channels * consumer.taps].reshape(len(x), channels, -1)
    maps = maps[:, :, sampler.positions(consumer.layer, maps.shape[2])]
    return maps.detach().permute(0, 2, 1).reshape(-1, channels).numpy()


@contextlib.contextmanager
def recorded(model: nn.Module, groups: ChannelGroups, sampler: Sampler) -> Iterator[Rows]:
    """Record channels of every group at each consumer's input, for all images that the model sees inside the block.

    The dictionary is filled when the block ends.
    """
    found: dict[tuple[str, str], list[npt.NDArray[np.float32]]] = {}
    rows: Rows = {}

    def watch(group: Group, consumer: Consumer) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen = observe(channels_first(inputs[0], module), group.channels, consumer, sampler, consumer.offset)
            found.setdefault((group.name, consumer.layer), []).append(seen)

        return hook

    modules = dict(model.named_modules())
    with hooks([modules[c.layer].register_forward_pre_hook(watch(g, c)) for g, c in consumers(groups)]):
        yield rows
    rows |= {key: np.concatenate(parts) for key, parts in found.items()}


@dataclass(frozen=True, eq=False)
class Response:
    """Hold one layer's outputs `values` [N · P, O] for N images at `positions` [P] of its map (a linear layer: one)."""

    values: torch.Tensor
    positions: torch.Tensor


@contextlib.contextmanager
def responses(model: nn.Module, groups: ChannelGroups, sampler: Sampler) -> Iterator[dict[str, Response]]:
    """Record outputs of every layer that reads a group, by layer, for all images that the model sees inside the block.

    The dictionary is filled when the block ends.
    """
    found: dict[str, list[torch.Tensor]] = {}
    places: dict[str, torch.Tensor] = {}
    result: dict[str, Response] = {}

    def watch(layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            maps = channels_first(output.detach(), module)
            maps = maps.reshape(*maps.shape[:2], -1)
            places[layer] = torch.from_numpy(sampler.positions(layer, maps.shape[2]))
            found.setdefault(layer, []).append(maps[:, :, places[layer]].movedim(1, 2).reshape(-1, maps.shape[1]))

        return hook

    modules = dict(model.named_modules())
    with hooks([modules[layer].register_forward_hook(watch(layer)) for layer in consuming_layers(groups)]):
        yield result
    result |= {layer: Response(torch.cat(parts), places[layer]) for layer, parts in found.items()}


@contextlib.contextmanager
def differentiable(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Record outputs of these layers, by name, for the last images seen inside the block, as tensors with gradients.

    They are [N, O, …], also of a linear layer.
    """
    modules = dict(model.named_modules())
    outputs: dict[str, torch.Tensor] = {}

    def watch(layer: str) -> Callable[..., torch.Tensor]:
        def hook(module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            # A copy goes on: in-place activations behind the layer would destroy what is differentiated.
            first = channels_first(output, module)
            outputs[layer] = first if first.requires_grad else first.requires_grad_()
            return channels_back(outputs[layer], module).clone()

        return hook

    with hooks([modules[layer].register_forward_hook(watch(layer)) for layer in layers]):
        yield outputs


def gradient_rows(loss: torch.Tensor, outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Compute ∂ loss / ∂ output of each layer, [N · positions, O]."""
    found = torch.autograd.grad(loss, list(outputs.values()))
    return {name: g.movedim(1, -1).reshape(-1, g.shape[1]) for name, g in zip(outputs, found, strict=True)}


def gradient_matrices(
    model: nn.Module, groups: ChannelGroups, x: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor], batch: int
) -> dict[str, Floats]:
    """Average g·gᵀ [O, O] over images, summed over map positions, with g = ∂ loss / ∂ output of each consumer.

    `loss` takes a batch's logits [n, classes] and sums over the images.
    """
    totals: dict[str, torch.Tensor] = {}
    with differentiable(model, consuming_layers(groups)) as outputs:
        for part in x.split(batch):
            for name, rows in gradient_rows(loss(model(part)), outputs).items():
                totals[name] = totals.get(name, torch.zeros(())) + (rows.T @ rows).double()
    return {name: (total / len(x)).numpy() for name, total in totals.items()}


def output_sensitivity(
    model: nn.Module, groups: ChannelGroups, classes: Indices, x: torch.Tensor, seed: int = 0, batch: int = 32
) -> dict[str, Floats]:
    """Estimate the sensitivity of the target classes' logits: a Gauss-Newton matrix [O, O] at each consumer's outputs.

    It is the mean over images of g·gᵀ, summed over map positions, g = ∂ vᵀz_S / ∂ output [O] with random signs v on the
    target classes' logits z_S, centred over them because a softmax ignores a common shift. No labels are needed. Its
    diagonal alone would take errors of different outputs for independent: deep layers, whose outputs push the logits
    together, would seem a hundred times too cheap.

    Args:
        model: The full network, in eval mode.
        groups: Its channel groups.
        classes: Target classes.
        x: Normalised images [N, C, H, W].
        seed: Draws the signs.
        batch: Images of one backward pass.
    """
    generator = torch.Generator().manual_seed(seed)
    target_classes = torch.from_numpy(np.asarray(classes))

    def loss(logits: torch.Tensor) -> torch.Tensor:
        z = logits[:, target_classes]
        signs = torch.randint(0, 2, z.shape, generator=generator).to(z.dtype) * 2 - 1
        return ((z - z.mean(1, keepdim=True)) * signs).sum()

    return gradient_matrices(model, groups, x, loss, batch)
