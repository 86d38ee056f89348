"""The filter atlas: what each filter looks for, as a picture and as shares of classes."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

from common.errors import StateError
from simulations.report.data import Array, Details
from simulations.report.heatmaps import MAX_CLASSES

MAX_FILTERS = 32  # of one group in the atlas
MAX_GROUPS = 64  # in the atlas
MAX_SPRITES = 6 << 20  # bytes of all pictures, before base64
MAX_SIDE = 64  # pixels of a picture


@dataclass(frozen=True)
class FilterView:
    """One filter: its place in the group's sprite, its clearest classes and its profile as an SVG path."""

    number: int
    family: int | None
    column: int
    classes: list[tuple[str, float]]
    path: str


@dataclass(frozen=True)
class GroupView:
    """One group of the atlas: a sprite of `len(filters)` pictures side by side."""

    name: str
    filters: list[FilterView]
    total: int
    sprite: str
    aspect: float
    png_bytes: int


def read_atlas(path: Path, details: Details) -> tuple[list[GroupView], list[str]]:
    """Groups with their pictures, and the names of those that the page has no room for.

    Raises StateError when the file is damaged; without a file there are no groups.
    """
    try:
        tensors = safetensors.numpy.load(path.read_bytes())
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise StateError(f"{path} cannot be read ({error.strerror}); check the permissions") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise StateError(f"{path} is damaged ({error}); visualise the filters again or delete it") from error
    groups: list[GroupView] = []
    left_out: list[str] = []
    room = MAX_SPRITES
    for name in _in_order([key.removeprefix("picture.") for key in tensors if key.startswith("picture.")], details):
        found = _Filters(tensors[f"picture.{name}"], tensors.get(f"profile.{name}"), tensors.get(f"cluster.{name}"))
        if not found.fit():
            raise StateError(
                f"{path} is damaged (group {name}: pictures {found.pictures.dtype} {list(found.pictures.shape)} do not "
                "fit their profiles or clusters); visualise the filters again or delete it"
            )
        view = _view(name, found, details, room) if len(groups) < MAX_GROUPS else None
        if view is None:
            left_out.append(name)
            continue
        room -= view.png_bytes
        groups.append(view)
    return groups, left_out


@dataclass(frozen=True, eq=False)
class _Filters:
    """Of one group: `pictures` uint8 [F, H, W, channels], `profile` [F, C], `family` [F] its filter cluster."""

    pictures: NDArray[Any]
    profile: NDArray[Any] | None
    family: NDArray[Any] | None

    def fit(self) -> bool:
        """Whether the arrays speak of the same filters."""
        pictures, profile, family = self.pictures, self.profile, self.family
        return (
            pictures.ndim == 4
            and 0 not in pictures.shape
            and pictures.dtype == np.uint8
            and (profile is None or (profile.ndim == 2 and len(profile) == len(pictures)))
            and (family is None or family.shape == (len(pictures),))
        )


def _view(name: str, found: _Filters, details: Details, room: int) -> GroupView | None:
    """The group as the page shows it, None when its pictures take more than `room` bytes."""
    filters, family = len(found.pictures), found.family
    shares = _shares(found.profile) if found.profile is not None else None
    chosen = choose(filters, shares, family)
    png, aspect = sprite_of(found.pictures[chosen])
    if len(png) > room:
        return None
    views = [
        FilterView(
            int(index),
            int(family[index]) if family is not None else None,
            column,
            _top(shares[index], details) if shares is not None else [],
            profile_path(shares[index]) if shares is not None and shares.shape[1] <= MAX_CLASSES else "",
        )
        for column, index in enumerate(chosen)
    ]
    sprite = "data:image/png;base64," + base64.b64encode(png).decode()
    return GroupView(name, views, filters, sprite, aspect, len(png))


def _in_order(names: list[str], details: Details) -> list[str]:
    """Groups in the plans' order; then the others by name."""
    rank = {name: number for number, name in enumerate(details.groups)}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


def _shares(profile: NDArray[Any]) -> Array:
    """Rows that sum to one, or to zero where a filter has no class."""
    values = np.clip(np.nan_to_num(profile.astype(np.float64), posinf=0, neginf=0), 0, None)
    total = values.sum(1, keepdims=True)
    shares: Array = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    return shares


def choose(filters: int, shares: Array | None, family: NDArray[Any] | None) -> NDArray[np.int64]:
    """At most `MAX_FILTERS` filters, by family and number: in turn from each family, those with the clearest class."""
    clear = shares.max(1) if shares is not None and shares.shape[1] else np.zeros(filters)
    families = family if family is not None else np.zeros(filters, dtype=np.int64)
    order = np.argsort(-clear, kind="stable")
    turn, seen = np.zeros(filters, dtype=np.int64), Counter[int]()
    for index in order:
        turn[index] = seen[int(families[index])]
        seen[int(families[index])] += 1
    chosen = np.lexsort((-clear, turn))[:MAX_FILTERS]
    return chosen[np.lexsort((chosen, families[chosen]))].astype(np.int64)


def sprite_of(pictures: NDArray[np.uint8]) -> tuple[bytes, float]:
    """PNG of all pictures side by side, and width / height of one."""
    _, height, width, channels = pictures.shape
    if channels not in (1, 3):
        pictures = pictures.mean(-1, keepdims=True).round().astype(np.uint8)
    shrink = min(1.0, MAX_SIDE / max(height, width))
    side = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    sheet = Image.new("L" if pictures.shape[-1] == 1 else "RGB", (side[0] * len(pictures), side[1]))
    for column, picture in enumerate(pictures):
        image = Image.fromarray(np.ascontiguousarray(picture[..., 0] if pictures.shape[-1] == 1 else picture))
        sheet.paste(image if shrink == 1 else image.resize(side, Image.Resampling.LANCZOS), (column * side[0], 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue(), side[0] / side[1]


def _top(shares: Array, details: Details) -> list[tuple[str, float]]:
    """The three classes with the largest shares."""
    best = np.argsort(-shares, kind="stable")[:3]
    return [(details.name(int(index)), float(shares[index])) for index in best if shares[index] > 0]


def profile_path(shares: Array) -> str:
    """SVG path of a profile as bars, in a box 4 wide for each class and 20 high."""
    top = float(shares.max(initial=0.0))
    heights = [(place, 20 * share / top) for place, share in enumerate(shares.tolist())] if top > 0 else []
    return "".join(f"M{4 * place} 20v-{height:.1f}h3v{height:.1f}z" for place, height in heights if height >= 0.4)
