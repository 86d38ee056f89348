"""Gather class moments of a network from labelled reference images, and derive pruning curves of any usage from them.

Images are looked at once, class by class; memory is that of one class's sums, however many images there are. Afterwards
a usage (shares of the classes) costs linear algebra alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.errors import DataError
from fedcaptor.common.groups import Group
from fedcaptor.common.moments import SHARE, ClassMoments, Key, Moments, Scatter
from fedcaptor.common.observations import Sampler, consumers, consuming_layers, statistics_of
from fedcaptor.common.plan import Plan
from fedcaptor.common.selection import ConsumerStatistics, PruningCurve, pruning_curve
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.evidence import differentiable, gradient_rows, recorded
from fedcaptor.common.torch_engine.forward import normalise

Place = Key | str
"""A group's channels at a consumer's input, or the gradients at a consumer's outputs."""


def network_digest(base: BaseModel) -> str:
    """Hash channel groups and weights (SHA-256, hex): moments of one network mean nothing in another."""
    found = hashlib.sha256(base.groups.digest.encode())
    for name in sorted(base.state):
        found.update(name.encode() + np.ascontiguousarray(base.state[name]).tobytes())
    return found.hexdigest()


def gather(
    base: BaseModel,
    images: Images,
    labels: Indices,
    *,
    positions: int = 32,
    batch: int = 32,
    share: float = SHARE,
    seed: int = 0,
) -> ClassMoments:
    """Gather the moments of every class.

    Args:
        base: The full model.
        images: uint8 [N, H, W, C], may be a memory-mapped array.
        labels: [N], the images' classes.
        positions: Most map positions that are observed of an image.
        batch: Images of one forward and backward pass.
        share: Share of each covariance's trace that is kept.
        seed: Chooses the map positions.

    Raises:
        DataError: There are no images, or labels beyond the classes.
    """
    classes = base.groups.classes
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"{len(labels)} labels given, needed is at least 1, all in 0..{classes - 1}: check the images")
    sampler = Sampler(1, positions, seed)
    packed: list[dict[Place, Moments]] = []
    for c in range(classes):
        own, sums = np.flatnonzero(labels == c), dict[Place, Scatter]()
        for start in range(0, len(own), batch):
            x = normalise(images[own[start : start + batch]], base.mean, base.std)
            found = _batch_sums(base, x, c, sampler)
            sums = {place: sums[place] + scatter if sums else scatter for place, scatter in found.items()}
        packed.append({place: Moments.of(scatter, share) for place, scatter in sums.items()})
    inputs = {(group.name, consumer.layer): group.channels for group, consumer in consumers(base.groups)}
    outputs = {layer: base.groups.tensors[f"{layer}.weight"][0] for layer in consuming_layers(base.groups)}
    return ClassMoments(
        network_digest(base),
        np.bincount(labels, minlength=classes).astype(np.int64),
        {key: [found.get(key, Moments.unseen(channels)) for found in packed] for key, channels in inputs.items()},
        {
            layer: [found.get(layer, Moments.unseen(channels)) for found in packed]
            for layer, channels in outputs.items()
        },
    )


def _batch_sums(base: BaseModel, x: torch.Tensor, label: int, sampler: Sampler) -> dict[Place, Scatter]:
    """Sum up normalised images [N, C, H, W] of one class in one forward and one backward pass.

    Gradients are those of z_label - mean z: a softmax ignores a common shift.
    """
    layers = consuming_layers(base.groups)
    with recorded(base.module, base.groups, sampler) as rows, differentiable(base.module, layers) as outputs:
        z = base.module(x)
    gradients = gradient_rows((z[:, label] - z.mean(1)).sum(), outputs)
    observed: list[tuple[Place, Any]] = [*rows.items(), *((name, g.numpy()) for name, g in gradients.items())]
    return {place: Scatter.of(seen) for place, seen in observed}


def curves_for(
    base: BaseModel,
    moments: ClassMoments,
    usage: Floats,
    classes: Indices,
    *,
    start: Plan | None = None,
    importance: Mapping[str, Floats] | None = None,
) -> dict[str, PruningCurve]:
    """Compute the pruning curve of each group for a usage of the target `classes`, without a forward pass.

    The result resembles `Evidence.curves` on images of these classes in proportion to `usage` [K]; `start` and
    `importance` are those of `Evidence.gather`. Raises DataError for a target class without images.
    """
    target_classes = np.unique(classes)
    weights = np.where(np.isin(np.arange(len(usage)), target_classes), usage, 0.0)
    sensitivity = {layer: moments.sensitivity(layer, target_classes) for layer in moments.gradients}
    return {
        group.name: pruning_curve(
            _consumer_statistics(base, moments, group, weights, sensitivity),
            importance=None if importance is None else importance.get(group.name),
            start=None if start is None else start.kept.get(group.name),
        )
        for group in base.groups.prunable
        if group.consumers
    }


def _consumer_statistics(
    base: BaseModel, moments: ClassMoments, group: Group, weights: Floats, sensitivity: Mapping[str, Floats]
) -> list[ConsumerStatistics]:
    """Compute the statistics of each consumer of a group for images in proportion to `weights` [K]."""
    result = []
    for consumer in group.consumers:
        weight = np.asarray(base.state[f"{consumer.layer}.weight"])
        covariance = moments.covariance(group.name, consumer.layer, weights)
        result.append(statistics_of(covariance, weight, group, consumer, sensitivity[consumer.layer]))
    return result
