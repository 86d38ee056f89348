"""The filter atlas of a run: what each filter looks for, as a picture and as shares of classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from fedcaptor.common.errors import StateError
from fedcaptor.simulations.records import Details
from fedcaptor.simulations.report.filters import (
    GroupView,
    Shown,
    choose,
    families_of,
    local,
    shares_of,
    sprite_of,
    views,
)

MAX_FILTERS = 32  # of one group in the atlas
MAX_GROUPS = 64  # in the atlas
MAX_SPRITES = 6 << 20  # bytes of all pictures, before base64


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
        room -= view.sprite.png_bytes
        groups.append(view)
    return groups, left_out


@dataclass(frozen=True, eq=False)
class _Filters:
    """The filters of one group: `pictures` uint8 [F, H, W, channels], `profile` [F, C], `family` [F] their cluster."""

    pictures: NDArray[Any]
    profile: NDArray[Any] | None
    family: NDArray[Any] | None

    def fit(self) -> bool:
        """Whether the arrays are of the same number of filters and of the right kind."""
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
    shares = shares_of(found.profile) if found.profile is not None else None
    family = local(found.family) if found.family is not None else None
    chosen = choose(shares, np.zeros(len(found.pictures), np.int64) if family is None else family, MAX_FILTERS)
    sprite = sprite_of(found.pictures[chosen])
    if sprite.png_bytes > room:
        return None
    own = Shown(
        chosen,
        found.pictures[chosen],
        shares[chosen] if shares is not None else None,
        family[chosen] if family is not None else None,
    )
    families = families_of(family, shares, details.name) if family is not None else []
    return GroupView(name, views(own, details.name), families, len(found.pictures), sprite)


def _in_order(names: list[str], details: Details) -> list[str]:
    """Groups in the plans' order; then the others by name."""
    rank = {name: number for number, name in enumerate(details.groups)}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))
