"""Estimate the target classes' sensitivity to each layer by the Fisher matrix: an alternative to Gauss-Newton.

`.evidence.output_sensitivity` is the other one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedcaptor.common.arrays import Floats, Indices
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.torch_engine.evidence import gradient_matrices


def fisher_sensitivity(
    model: nn.Module,
    groups: ChannelGroups,
    classes: Indices,
    x: torch.Tensor,
    seed: int = 0,
    batch: int = 32,
    temperature: float = 4.0,
) -> dict[str, Floats]:
    """Estimate the Fisher matrix [O, O] of the target classes at each consumer's outputs, summed over map positions.

    It is the mean over images of g·gᵀ, g = ∂ -log p_y / ∂ output [O], with p the softmax of the target classes' logits
    over `temperature` and y drawn from p: no labels are needed, and an error between two classes counts by how likely
    both are. The higher the temperature, the more alike p is for all images; as it grows without bound the result
    becomes a multiple of `output_sensitivity`, whose arguments the others are.
    """
    generator = torch.Generator().manual_seed(seed)
    target_classes = torch.from_numpy(np.asarray(classes))

    def loss(logits: torch.Tensor) -> torch.Tensor:
        z = logits[:, target_classes].double() / temperature
        drawn = torch.multinomial(z.detach().softmax(1), 1, generator=generator)[:, 0]
        return functional.cross_entropy(z, drawn, reduction="sum")

    return gradient_matrices(model, groups, x, loss, batch)
