"""The work behind an atlas page: scores, patches and pictures of a network's filters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedcaptor.common.arrays import Array, Images
from fedcaptor.common.data.source import Dataset
from fedcaptor.common.data.splits import split
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.filter_clusters import filter_clusters
from fedcaptor.common.preference import layer_slices
from fedcaptor.common.progress import OnProgress
from fedcaptor.common.random_streams import require_seed
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.scores import ClassScores, normalised, taylor_scores
from fedcaptor.server.painting import Visualisation
from fedcaptor.server.patches import Patches, most_exciting
from fedcaptor.server.visualise import Pictures, visualise_filters
from fedcaptor.simulations.report.atlas_page import Page, write_atlas
from fedcaptor.simulations.report.filters import (
    MAX_PATCH,
    GroupView,
    Name,
    Shown,
    choose,
    families_of,
    local,
    shares_of,
    sprite_of,
    views,
)

SCORED_IMAGES = 240  # for profiles on images; more change them little
SEEN_IMAGES = 1000  # searched for patches


@dataclass(frozen=True)
class Look:
    """What a page shows. `layers`: names of channel groups, none for all; `filters`: most of a layer; `patches` of
    images beside each picture; `steps` that a picture is painted in. Raises ConfigError for a seed that cannot be.
    """

    layers: tuple[str, ...] = ()
    filters: int = 16
    patches: int = 4
    steps: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        require_seed(self.seed)


def write(
    base: BaseModel,
    images: Images,
    data: str,
    names: tuple[str, ...],
    look: Look,
    out: Path,
    on_progress: OnProgress,
) -> Path:
    """Score, search, paint and write the page. Raises ConfigError for a layer that the network lacks."""
    layers = _layers(base, wanted(base, look.layers), images[:SCORED_IMAGES], look, on_progress)
    patches = _patches(base, layers, images, look.patches, on_progress)
    pictures = _painted(base, layers, look, on_progress)
    shown = tuple(_view(layer, pictures[layer.name], patches.get(layer.name), names.__getitem__) for layer in layers)
    searched = len(images) if patches else 0
    return write_atlas(out, Page(base.name, data, base.groups.input_shape, names, look.steps, searched, shown))


@dataclass(frozen=True, eq=False)
class _Layer:
    """Prunable group `number`: families [F] and measured profiles [F, classes] of all, and the filters shown."""

    number: int
    name: str
    family: NDArray[np.int64]
    measured: Array
    chosen: NDArray[np.int64]


def wanted(base: BaseModel, layers: tuple[str, ...]) -> list[int]:
    """Numbers of the groups asked for."""
    known = [group.name for group in base.groups.prunable]
    for layer in layers:
        if layer not in known:
            raise ConfigError(f"layer {layer!r} is unknown: give some of {', '.join(known)}")
    return [number for number, name in enumerate(known) if not layers or name in layers]


def reference_images(data: Dataset, seed: int) -> Images:
    """Reference images, a random part if there are many."""
    reference = split(data)["reference"]
    drawn: Images = data.x[np.random.default_rng(seed).permutation(reference)[:SEEN_IMAGES]]
    return drawn


def _layers(base: BaseModel, wanted: list[int], images: Images, look: Look, on_progress: OnProgress) -> list[_Layer]:
    """Families of filters by what they do to the network's answers on images, and whom the page shows of each."""
    measured = _measured(base, images, on_progress)
    family = filter_clusters(measured, base.groups, seed=look.seed)
    slices = layer_slices(base.groups)
    found = []
    for number in wanted:
        own, profile = local(family[slices[number]]), measured[slices[number]]
        chosen = choose(profile, own, look.filters)
        found.append(_Layer(number, base.groups.prunable[number].name, own, profile, chosen))
    return found


def _measured(base: BaseModel, images: Images, on_progress: OnProgress) -> Array:
    """Profiles [F, classes] of all filters, rows summing to one."""
    scores: ClassScores | None = None
    for start in range(0, len(images), 32):
        x = normalise(images[start : start + 32], base.mean, base.std)
        part = taylor_scores(base.module, base.groups, x, logits(base.module, x).argmax(1))
        scores = part if scores is None else scores + part
        on_progress("scoring filters", start + len(x), len(images))
    assert scores is not None  # a split has no empty part
    return shares_of(normalised(scores))


def _patches(
    base: BaseModel, layers: list[_Layer], images: Images, count: int, on_progress: OnProgress
) -> dict[str, Patches]:
    if count == 0:
        return {}
    chosen = {layer.name: layer.chosen for layer in layers}
    return most_exciting(base, chosen, images, count, lambda done, total: on_progress("searching images", done, total))


def _painted(base: BaseModel, layers: list[_Layer], look: Look, on_progress: OnProgress) -> dict[str, Pictures]:
    settings = Visualisation(steps=look.steps, seed=look.seed)
    total = sum(-(-len(layer.chosen) // settings.batch) for layer in layers) * settings.steps
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        on_progress("painting", done, total)

    return {layer.name: visualise_filters(base, layer.number, layer.chosen, settings, step) for layer in layers}


def _view(layer: _Layer, seen: Pictures, patches: Patches | None, name: Name) -> GroupView:
    crops = np.asarray(patches.crops if patches else 0, np.uint8)
    shown = Shown(
        layer.chosen,
        np.asarray(seen.pictures, np.uint8),
        seen.profile.astype(np.float64),
        layer.family[layer.chosen],
        layer.measured[layer.chosen],
        (patches.strength > 0).sum(1) if patches else None,
    )
    return GroupView(
        layer.name,
        views(shown, name),
        families_of(layer.family, layer.measured, name),
        len(layer.family),
        sprite_of(np.asarray(seen.pictures, np.uint8)),
        sprite_of(crops.reshape(-1, *crops.shape[2:]), MAX_PATCH) if patches else None,
        patches.strength.shape[1] if patches else 0,
        patches.window if patches else None,
    )
