"""Crop reference images where they excite a filter most, to hold beside its picture."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedcaptor.common.arrays import Images
from fedcaptor.common.groups import Group
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.evidence import hooks
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.torch_engine.network import channels_first
from fedcaptor.server.painting import StopForward, channels_of

_LEAST = 12  # pixels of a crop's side: a person makes nothing of fewer
_BATCH = 64


@dataclass(frozen=True, eq=False)
class Patches:
    """Hold the most exciting crops for the chosen filters of one group.

    Attributes:
        crops: uint8 [F, k, side, side, C], the most exciting first; `side` is `window`, at least twelve pixels and at
            most the image.
        strength: [F, k], how much each excites; where that is not above zero, no further image excites the filter.
        window: Receptive field: largest side in pixels of what one place of a filter's map sees, 0 where nothing
            excites any filter.
    """

    crops: Images
    strength: NDArray[np.float32]
    window: int


@torch.no_grad()
def most_exciting(
    base: BaseModel,
    chosen: Mapping[str, NDArray[np.int64]],
    images: Images,
    count: int = 4,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Patches]:
    """Crop around the places of `count` different images that excite the chosen filters [F] of each group most.

    `on_batch(done, total)`: images seen so far.
    """
    groups = [base.groups.by_name[name] for name in chosen]
    values: dict[str, list[torch.Tensor]] = {name: [] for name in chosen}
    places: dict[str, list[torch.Tensor]] = {name: [] for name in chosen}

    def watch(group: Group) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            own = channels_of(channels_first(inputs[0], layer), group, group.consumers[0])[:, chosen[group.name]]
            peak = own.max(2)
            values[group.name].append(peak.values)
            places[group.name].append(peak.indices)

        return hook

    layers = dict(base.module.named_modules())
    with hooks([layers[g.consumers[0].layer].register_forward_pre_hook(watch(g)) for g in groups]):
        for start in range(0, len(images), _BATCH):
            base.module(normalise(images[start : start + _BATCH], base.mean, base.std))
            on_batch(min(start + _BATCH, len(images)), len(images))
    found = {}
    for group in groups:
        strength, rows = torch.cat(values[group.name]).T.topk(min(count, len(images)), 1)
        spots = torch.cat(places[group.name]).T.gather(1, rows)
        filters = torch.as_tensor(chosen[group.name])
        crops, window = _crops(base, group, filters, images, rows, spots)
        found[group.name] = Patches(crops, strength.float().numpy(), window)
    return found


def _crops(
    base: BaseModel, group: Group, filters: torch.Tensor, images: Images, rows: torch.Tensor, spots: torch.Tensor
) -> tuple[Images, int]:
    """Crop [F, k, side, side, C] from images `rows` [F, k] around what place `spots` [F, k] of each filter sees."""
    seen = images[rows.flatten().numpy()]
    targets, flat = filters.repeat_interleave(rows.shape[1]), spots.flatten()
    parts = torch.arange(len(flat)).split(_BATCH)
    boxes = np.concatenate([_boxes(base, group, targets[part], seen[part.numpy()], flat[part]) for part in parts])
    window = int((boxes[:, 1] - boxes[:, 0]).max())
    side = min(max(window, _LEAST), *seen.shape[1:3])
    corner = ((boxes.sum(1) - side) // 2).clip(0, np.array(seen.shape[1:3]) - side)
    crops = [image[top : top + side, left : left + side] for image, (top, left) in zip(seen, corner, strict=True)]
    return np.stack(crops).reshape(*rows.shape, side, side, -1), window


def _boxes(
    base: BaseModel, group: Group, targets: torch.Tensor, images: Images, spots: torch.Tensor
) -> NDArray[np.int64]:
    """Find the pixels [n, 2, 2] (first; behind the last) by (row, column) that one place of a filter's map depends on.

    Place `spots` [n] of filter `targets` [n]; pixels are read off its gradient, none where that is zero.
    """
    leaf = normalise(images, base.mean, base.std).requires_grad_()
    values: list[torch.Tensor] = []

    def hook(reader: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        own = channels_of(channels_first(inputs[0], reader), group, group.consumers[0])
        values.append(own[torch.arange(len(own)), targets, spots])
        raise StopForward

    layer = dict(base.module.named_modules())[group.consumers[0].layer]
    with torch.enable_grad(), hooks([layer.register_forward_pre_hook(hook)]):
        with contextlib.suppress(StopForward):
            base.module(leaf)
        gradient = torch.autograd.grad(values[0].sum(), leaf)[0]
    depends = gradient.ne(0).any(1)
    along = [depends.any(2).numpy(), depends.any(1).numpy()]  # by row, by column
    first = np.stack([line.argmax(1) for line in along], 1)
    behind = np.stack([(line * np.arange(1, line.shape[1] + 1)).max(1) for line in along], 1)
    return np.stack([first, behind], 1)
