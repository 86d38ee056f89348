"""How a page shows filters: pictures side by side in one PNG a layer, profiles as bars, families by colour."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedcaptor.common.arrays import Array
from fedcaptor.simulations.report.heatmaps import MAX_CLASSES

MAX_SIDE = 64  # pixels of a picture
MAX_PATCH = 32  # pixels of a patch
COLOURS = 8  # of families, in the style sheet
SHOWN_CLASSES = 8  # of a filter, in numbers

Name = Callable[[int], str]


@dataclass(frozen=True)
class Sprite:
    """`count` pictures of `width` × `height` pixels side by side in a PNG, as a data URL."""

    url: str
    count: int
    width: int
    height: int
    png_bytes: int

    def shown(self, wanted: int) -> int:
        """Width in CSS pixels up to `wanted`, if it fits, at which all pixels of the picture are equally large."""
        return self.width * max(1, wanted // self.width)


@dataclass(frozen=True)
class ClassShare:
    """A class of a filter: its share in the picture, and on images where that was measured."""

    name: str
    share: float
    measured: float | None = None


@dataclass(frozen=True)
class FilterView:
    """One filter: its place in the sprite, its clearest classes, and its profile as an SVG path; `marks` is the path
    of the measured one. Its first `patches` patches show something that excites it.
    """

    number: int
    family: int | None
    column: int
    classes: list[ClassShare]
    path: str
    marks: str = ""
    patches: int = 0


@dataclass(frozen=True)
class FamilyView:
    """Filters of a layer that want the same classes, and the two classes that they want most."""

    number: int
    filters: int
    classes: list[str]


@dataclass(frozen=True)
class GroupView:
    """One layer: `total` filters, of which some are shown, each with `each` patches in the sprite of these.

    `window`: side in pixels of what a place of its map sees.
    """

    name: str
    filters: list[FilterView]
    families: list[FamilyView]
    total: int
    sprite: Sprite
    patches: Sprite | None = None
    each: int = 0
    window: int | None = None


@dataclass(frozen=True, eq=False)
class Shown:
    """The filters of one group that a page shows, in this order.

    `numbers` [n] in the group; `pictures` uint8 [n, H, W, channels]; `shares` [n, classes] of their profiles, and
    `measured` ones. `family` [n], from 0. `excited` [n]: patches that excite each.
    """

    numbers: NDArray[np.int64]
    pictures: NDArray[np.uint8]
    shares: Array | None = None
    family: NDArray[np.int64] | None = None
    measured: Array | None = None
    excited: NDArray[np.int64] | None = None


def views(shown: Shown, name: Name) -> list[FilterView]:
    """Each filter as the page shows it."""
    return [_view(shown, row, name) for row in range(len(shown.numbers))]


def _view(shown: Shown, row: int, name: Name) -> FilterView:
    shares = shown.shares[row] if shown.shares is not None else np.zeros(0)
    measured = shown.measured[row] if shown.measured is not None else None
    drawn = len(shares) <= MAX_CLASSES
    top = max(float(part.max(initial=0.0)) for part in (shares, measured) if part is not None)
    return FilterView(
        int(shown.numbers[row]),
        int(shown.family[row]) if shown.family is not None else None,
        row,
        _clearest(shares, measured, name),
        profile_path(shares, top) if drawn else "",
        _marks(measured, top) if drawn and measured is not None else "",
        int(shown.excited[row]) if shown.excited is not None else 0,
    )


def _clearest(shares: Array, measured: Array | None, name: Name) -> list[ClassShare]:
    best = np.argsort(-shares, kind="stable")[:SHOWN_CLASSES]
    seen = [None if measured is None else float(measured[index]) for index in best]
    found = [ClassShare(name(int(i)), float(shares[i]), m) for i, m in zip(best, seen, strict=True)]
    return [each for each in found if each.share > 0]


def shares_of(profile: NDArray[Any]) -> Array:
    """Rows that sum to one, or to zero where a filter has no class."""
    values = np.clip(np.nan_to_num(profile.astype(np.float64), posinf=0, neginf=0), 0, None)
    total = values.sum(1, keepdims=True)
    shares: Array = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
    return shares


def choose(shares: Array | None, family: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` filters, by family and number: in turn from each family, those with the clearest class."""
    clear = shares.max(1) if shares is not None and shares.shape[1] else np.zeros(len(family))
    turn, seen = np.zeros(len(family), dtype=np.int64), Counter[int]()
    for index in np.argsort(-clear, kind="stable"):
        turn[index] = seen[int(family[index])]
        seen[int(family[index])] += 1
    chosen = np.lexsort((-clear, turn))[:most]
    return chosen[np.lexsort((chosen, family[chosen]))].astype(np.int64)


def local(family: NDArray[Any]) -> NDArray[np.int64]:
    """Number the families [F] anew, from 0 within the group."""
    return np.unique(family, return_inverse=True)[1].reshape(-1).astype(np.int64)


def families_of(family: NDArray[np.int64], shares: Array | None, name: Name) -> list[FamilyView]:
    """Families [F] of all filters of a group with what they want, by the mean profile."""
    found = []
    for number in range(int(family.max(initial=-1)) + 1):
        members = family == number
        wanted = shares[members].mean(0) if shares is not None else np.zeros(0)
        classes = [name(int(index)) for index in np.argsort(-wanted, kind="stable")[:2] if wanted[index] > 0]
        found.append(FamilyView(number, int(members.sum()), classes))
    return found


def sprite_of(pictures: NDArray[np.uint8], most: int = MAX_SIDE) -> Sprite:
    """Pictures [n, H, W, channels] side by side, shrunk to `most` pixels if they are larger."""
    count, height, width, channels = pictures.shape
    if channels not in (1, 3):
        pictures = pictures.mean(-1, keepdims=True).round().astype(np.uint8)
    shrink = min(1.0, most / max(height, width))
    side = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    sheet = Image.new("L" if pictures.shape[-1] == 1 else "RGB", (side[0] * count, side[1]))
    for column, picture in enumerate(pictures):
        image = Image.fromarray(np.ascontiguousarray(picture[..., 0] if pictures.shape[-1] == 1 else picture))
        sheet.paste(image if shrink == 1 else image.resize(side, Image.Resampling.LANCZOS), (column * side[0], 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    png = buffer.getvalue()
    return Sprite("data:image/png;base64," + base64.b64encode(png).decode(), count, *side, len(png))


def profile_path(shares: Array, top: float) -> str:
    """SVG path of a profile as bars, in a box 4 wide for each class and 20 high, which a share of `top` fills."""
    heights = [(place, 20 * share / top) for place, share in enumerate(shares.tolist())] if top > 0 else []
    return "".join(f"M{4 * place} 20v-{height:.1f}h3v{height:.1f}z" for place, height in heights if height >= 0.4)


def _marks(shares: Array, top: float) -> str:
    """SVG path of a line across each bar's place at the height of its share."""
    return "".join(f"M{4 * place} {20 - 20 * share / top:.1f}h3" for place, share in enumerate(shares.tolist()) if top)
