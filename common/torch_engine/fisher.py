"""The Fisher form of how the needed outputs feel each layer: an alternative to `.evidence.output_sensitivity`."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from common.groups import ChannelGroups
from common.plan import Indices
from common.selection import Floats
from common.torch_engine.evidence import consuming_layers, differentiable, gradient_rows


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
    totals: dict[str, torch.Tensor] = {}
    needed = torch.from_numpy(np.asarray(classes))
    with differentiable(model, consuming_layers(groups)) as outputs:
        for part in x.split(batch):
            z = model(part)[:, needed].double() / temperature
            drawn = torch.multinomial(z.detach().softmax(1), 1, generator=generator)[:, 0]
            loss = functional.cross_entropy(z, drawn, reduction="sum")
            for name, rows in gradient_rows(loss, outputs).items():
                totals[name] = totals.get(name, torch.zeros(())) + (rows.T @ rows).double()
    return {name: (total / len(x)).numpy() for name, total in totals.items()}
