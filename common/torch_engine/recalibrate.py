"""Recalibrate batch norms: statistics of what the pruned network sees now, not of what the full network saw."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from fedcaptor.common.arrays import Floats, Images
from fedcaptor.common.domain import moments_of
from fedcaptor.common.errors import DataError
from fedcaptor.common.plan import Plan
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.torch_engine.network import state_of


def batch_norms(module: nn.Module) -> list[Any]:
    """List the batch norms that keep running statistics, in order of definition."""
    return [
        m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]


@torch.no_grad()
def recalibrate(submodel: Submodel, images: Images, batch: int = 512) -> Submodel:
    """Copy a submodel with batch norms that hold mean and (unbiased) variance of `images`.

    Up to `batch` images the statistics are exact: one forward pass in which each norm already uses its new ones. Of
    more images they are the average over batches of nearly one size. All other layers stay in eval mode.

    Args:
        submodel: What to recalibrate; it stays as it is.
        images: Unlabelled images, uint8 [N, H, W, C].
        batch: Most images of one forward pass.

    Returns:
        The copy, a plain one where there are no batch norms.

    Raises:
        DataError: There are fewer than two images.
    """
    if len(images) < 2:
        raise DataError(f"{len(images)} images to recalibrate on, at least 2 are needed for a variance: give more")
    module = copy.deepcopy(submodel.module)
    norms = batch_norms(module)
    kept = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over batches
        norm.train()
    x = normalise(images, submodel.base.mean, submodel.base.std)
    for part in x.tensor_split(-(-len(x) // batch)) if norms else ():
        module(part)
    for norm, (momentum, tracked) in zip(norms, kept, strict=True):
        norm.momentum = momentum
        norm.num_batches_tracked.copy_(tracked)
    return Submodel(submodel.base, submodel.plan, module.eval())


def moments_on(base: BaseModel, images: Images) -> Floats:
    """Return the moments [m] (`common.domain`) of a network's batch norms on at least two images [N, H, W, C]."""
    whole = Submodel(base, Plan.of(base.groups, {}), base.module)
    return moments_of(base.state, state_of(recalibrate(whole, images).module))
