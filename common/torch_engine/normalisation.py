"""Tell whether images are normalised as a network's training normalised them, from its first batch norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedcaptor.common.arrays import Images
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.evidence import hooks
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.torch_engine.recalibrate import batch_norms

LOOKED_AT = 64  # images
SCALE, SHIFT = 0.22, 0.6
"""Least log ratio of deviations, and least shift in deviations, that are told of: medians over channels. Images of one
class differ from those of all by up to 0.17 and 0.27 (Fashion-MNIST); 0.5 in place of its mean and standard deviation
changes the first by 0.23 to 0.46."""


def mismatch(base: BaseModel, images: Images) -> str | None:
    """Say in words how `images` [N, H, W, C] differ from those that a network was trained on; None where they do not,
    or where it has no batch norm that was trained.
    """
    norms = [norm for norm in batch_norms(base.module) if norm.num_batches_tracked != 0]
    if not norms or len(images) < 2:
        return None
    x = normalise(images[:: -(-len(images) // LOOKED_AT)], base.mean, base.std)
    norm, values = _first_input(base.module, norms, x)
    axes = [0, *range(2, values.ndim)]
    deviation = norm.running_var.clamp_min(1e-12).sqrt()
    scale = float((values.std(axes).clamp_min(1e-12) / deviation).log().median())
    shift = float(((values.mean(axes) - norm.running_mean).abs() / deviation).median())
    if abs(scale) < SCALE and shift < SHIFT:
        return None
    return (
        f"the first batch norm meets {math.exp(scale):.2f} times the deviation of training, and means that are "
        f"{shift:.2f} deviations off"
    )


@torch.no_grad()
def _first_input(module: nn.Module, norms: Sequence[nn.Module], x: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Return the norm that is executed first, with its input."""
    seen: list[tuple[Any, torch.Tensor]] = []

    def watch(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append((norm, inputs[0]))

    with hooks([norm.register_forward_pre_hook(watch) for norm in norms]):
        module(x)
    return seen[0]
