"""`fedcaptor atlas`: what the filters of a network look for, as a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cli.prune import load_base
from common.data.source import Dataset, load
from common.data.splits import split
from common.errors import ConfigError
from common.filter_clusters import filter_clusters
from common.preference import layer_slices
from common.torch_engine.base import BaseModel
from common.torch_engine.forward import Images, logits, normalise
from common.torch_engine.scores import normalised, taylor_scores
from server.patches import Patches, most_exciting
from server.visualise import Visualisation, visualise_filters
from simulations.report.atlas_page import Page, write_atlas
from simulations.report.data import Array
from simulations.report.filters import (
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

SCORED_IMAGES = 240  # for the measured profiles; more changes them little
SEEN_IMAGES = 1000  # searched for patches

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What `fedcaptor atlas` was asked for. `layers`: names of channel groups, empty for all."""

    model: str
    weights: Path
    source: str
    out: Path
    layers: tuple[str, ...] = ()
    filters: int = 16
    steps: int = 64
    seed: int = 0


def make_atlas(request: Request, on_progress: Progress = lambda what, done, total: None) -> Path:
    """Paint, measure and write the page. Raises ConfigError for a layer that the network lacks."""
    data = load(request.source)
    base = load_base(request.model, request.weights, data)
    numbers = _numbers(base, request.layers)
    images = _images(data, request.seed)
    names = data.names if len(data.names) == base.groups.classes else tuple(map(str, range(base.groups.classes)))
    name = names.__getitem__
    measured = _measured(base, images[:SCORED_IMAGES], lambda done, total: on_progress("scoring filters", done, total))
    family = filter_clusters(measured, base.groups, seed=request.seed)
    rows = {n: layer_slices(base.groups)[n] for n in numbers}
    families = {n: local(family[rows[n]]) for n in numbers}
    chosen = {n: choose(measured[rows[n]], families[n], request.filters) for n in numbers}
    groups = base.groups.prunable
    patches = most_exciting(
        base,
        {groups[n].name: chosen[n] for n in numbers},
        images,
        on_batch=lambda done, total: on_progress("searching images", done, total),
    )
    settings = Visualisation(steps=request.steps, seed=request.seed)
    layers, left = [], _Steps([len(chosen[n]) for n in numbers], settings, on_progress)
    for n in numbers:
        seen = visualise_filters(base, n, chosen[n], settings, left.step)
        own = measured[rows[n]]
        shown = _shown(chosen[n], seen.pictures, shares_of(seen.profile), families[n], own, patches[groups[n].name])
        layers.append(_layer(groups[n].name, shown, families[n], own, patches[groups[n].name].window, name))
    page = Page(request.model, data.name, base.groups.input_shape, names, request.steps, len(images), tuple(layers))
    return write_atlas(request.out, page)


class _Steps:
    """Counts the steps of all layers."""

    def __init__(self, filters: list[int], settings: Visualisation, on_progress: Progress) -> None:
        self.total = sum(-(-n // settings.batch) for n in filters) * settings.steps
        self.done, self.on_progress = 0, on_progress

    def step(self) -> None:
        self.done += 1
        self.on_progress("painting", self.done, self.total)


def _numbers(base: BaseModel, layers: tuple[str, ...]) -> list[int]:
    known = [group.name for group in base.groups.prunable]
    for layer in layers:
        if layer not in known:
            raise ConfigError(f"layer {layer!r} is unknown, the layers are {', '.join(known)}: give some of these")
    return [n for n, name in enumerate(known) if not layers or name in layers]


def _images(data: Dataset, seed: int) -> Images:
    """Reference images, a random part if there are many."""
    reference = split(data)["reference"]
    drawn = np.random.default_rng(seed).permutation(reference)[:SEEN_IMAGES]
    return data.x[drawn]


def _measured(base: BaseModel, images: Images, on_batch: Callable[[int, int], None]) -> Array:
    """Profiles [F, classes] of all filters on images, by what the network answers; rows sum to one."""
    batch = 32
    total: Any = None
    for start in range(0, len(images), batch):
        x = normalise(images[start : start + batch], base.mean, base.std)
        scores = taylor_scores(base.module, base.groups, x, logits(base.module, x).argmax(1))
        total = scores if total is None else total + scores
        on_batch(min(start + batch, len(images)), len(images))
    return shares_of(normalised(total))


def _shown(
    chosen: np.ndarray, pictures: Images, shares: Array, family: np.ndarray, measured: Array, patches: Patches
) -> Shown:
    return Shown(
        chosen,
        pictures,
        shares,
        family[chosen],
        measured[chosen],
        patches.crops,
        (patches.strength > 0).sum(1),
    )


def _layer(name: str, shown: Shown, family: np.ndarray, measured: Array, window: int, of_class: Name) -> GroupView:
    assert shown.patches is not None
    return GroupView(
        name,
        views(shown, of_class),
        families_of(family, measured, of_class),
        len(family),
        sprite_of(shown.pictures),
        sprite_of(shown.patches.reshape(-1, *shown.patches.shape[2:])),
        window,
    )
