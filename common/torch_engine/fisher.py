"""The Fisher form of how the needed outputs feel each layer: an alternative to `.evidence.output_sensitivity`."""

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
    """Fisher matrix [O, O] of the needed classes at each consumer's outputs, summed over map positions.

    Mean over images of g·gᵀ, g = ∂ -log p_y / ∂ output [O], with p the softmax of the needed logits over `temperature`
    and y drawn from p: needs no labels, and an error between two classes counts by how likely both are. The hotter,
    the more alike p is for all images; as it grows without bound the result becomes a multiple of
    `output_sensitivity`.
    """
    generator = torch.Generator().manual_seed(seed)
    needed = torch.from_numpy(np.asarray(classes))

    def loss(logits: torch.Tensor) -> torch.Tensor:
        z = logits[:, needed].double() / temperature
        drawn = torch.multinomial(z.detach().softmax(1), 1, generator=generator)[:, 0]
        return functional.cross_entropy(z, drawn, reduction="sum")

    return gradient_matrices(model, groups, x, loss, batch)
