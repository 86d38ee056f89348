"""How a phone's photos look, measured outside replies, and which of the published looks is theirs."""

from __future__ import annotations

import logging
import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from fedcaptor.client import tensor_file
from fedcaptor.client.folder import ADAPTATION_FILE, LOOK_FILE
from fedcaptor.client.tensor_file import DAY, metadata_of, tensors_of
from fedcaptor.common.adaptation import Adaptation
from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.errors import WireError
from fedcaptor.common.files import write_whole
from fedcaptor.common.look import look_of, rendered
from fedcaptor.common.statistics import LOOK, MOMENTS

if TYPE_CHECKING:
    from fedcaptor.client.engine import Engine

logger = logging.getLogger(__name__)

KINDS = (LOOK.kind, MOMENTS.kind)
"""Sums of how photos look."""

_FAR, _MANY = 3.0, 12
"""How far looks of so many photos, or more, of a few classes lie apart by chance; of fewer, by the root of how many
times fewer they are. At most one in a hundred phones with photos like the server's is farther, grey or in colour; all
whose photos are blurred by a pixel or dim are, and of noisy ones (deviation 0.1) those in colour. Grey noisy photos, of
which a fourth are answered wrongly, are at least half as far, and one in a hundred others.
"""
_FARTHER, _NEARER = -1.0, 2.0
"""Standard errors that the answers to images in a look must gain: beyond `_FAR`, and from half of it on."""
_WEIGHTS = "weights"  # metadata key


class OwnLook(NamedTuple):
    """The look [n] of a day's photos, how many they are, and, where that is asked for, the base model's moments [m] on
    them.
    """

    look: Floats
    photos: int
    moments: Floats | None = None


def measure(folder: Path, shipped: Engine, images: Images, day: int, moments: bool = False) -> OwnLook | None:
    """Measure a day's images, with the model as it was shipped where `moments` are asked for, and store it.

    Returns None below two images.
    """
    if len(images) < 2:
        return None
    found = OwnLook(look_of(images), len(images), shipped.moments(images) if moments else None)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.atleast_1d(value) for name, value in found._asdict().items() if value is not None}
    write_whole(folder / LOOK_FILE, save(tensors, {DAY: str(day)}), private=True)
    return found


def due(folder: Path, day: int, moments: bool) -> bool:
    """Tell whether a day's images were not measured yet, or without the moments that are asked for."""
    found = read(folder)
    return day_of(folder) != day or (moments and found is not None and found.moments is None)


def day_of(folder: Path) -> int:
    """Return the day of what was measured last, -1 where nothing was or it cannot be read."""
    return tensor_file.day_of(folder / LOOK_FILE)


def read(folder: Path) -> OwnLook | None:
    """Return what was measured last, None where nothing was or it cannot be read."""
    tensors = tensors_of(folder / LOOK_FILE)
    if not tensors.keys() >= {"look", "photos"}:
        return None
    return OwnLook(tensors["look"], int(tensors["photos"][0]), tensors.get("moments"))


def keep_adaptation(folder: Path, adaptation: Adaptation, weights: str) -> None:
    """Keep a published adaptation of the base model with these weights, in place of an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in adaptation.tensors.items()}
    write_whole(folder / ADAPTATION_FILE, save(arrays, {_WEIGHTS: weights}), private=True)


def adapted_alone(folder: Path, shipped: Engine, reference: Images, labels: Indices | None) -> Adaptation | None:
    """Adapt to the phone's own look alone, and keep that; None where its look is not known, or that brings nothing.

    The moments are those of the server's images, re-rendered in the phone's look. The adapted model must answer these
    images, whose labels are known, better than the shipped model does. Where the look is farther off than chance
    makes it, no worse is enough.
    """
    own = read(folder)
    if own is None or labels is None or len(reference) < 2:
        return None
    source = look_of(reference)
    distance = np.linalg.norm(own.look - source) / _far(own.photos)
    if distance > 0.5:
        photos = rendered(reference, own.look - source)
        moments = shipped.moments(photos)
        gain = (shipped.adapted(moments).predict(photos) == labels).astype(float) - (shipped.predict(photos) == labels)
        needed = (_FARTHER if distance > 1 else _NEARER) * gain.std(ddof=1) / math.sqrt(len(gain))
        if gain.mean() >= needed and gain.any():
            found = Adaptation(*(np.asarray(part, np.float32) for part in (own.look[None], source, moments[None])))
            keep_adaptation(folder, found, shipped.weights_digest)
            return found
    (folder / ADAPTATION_FILE).unlink(missing_ok=True)  # of an earlier day
    return None


def _far(photos: int) -> float:
    """Return how far the look of so many photos lies from the server's by chance, at most."""
    return _FAR * math.sqrt(_MANY / min(max(photos, 1), _MANY))


def adaptation_of(folder: Path, shipped: Engine) -> Adaptation | None:
    """Return the kept adaptation; None where there is none, it is of other weights, or it cannot be read."""
    path = folder / ADAPTATION_FILE
    if not path.exists() or metadata_of(path).get(_WEIGHTS) != shipped.weights_digest:
        return None
    try:
        return Adaptation.of(tensors_of(path), shipped.groups)
    except WireError as error:
        logger.warning("%s does not fit (%s): the next delivery replaces it", path, error)
        return None


def chosen(folder: Path, adaptation: Adaptation) -> int | None:
    """Return the number of the published look that is nearest to the phone's own; None before that was measured."""
    own = read(folder)
    return None if own is None else adaptation.nearest(own.look)


def adapted_engine(folder: Path, shipped: Engine) -> Engine:
    """Return an engine with the base model as it is adapted to the phone's photos, or as it was shipped."""
    adaptation = adaptation_of(folder, shipped)
    look = None if adaptation is None else chosen(folder, adaptation)
    if adaptation is None or look is None or not adaptation.moments[look].any():
        return shipped
    key: Any = shipped  # engines are compared by identity
    return _adapted(key, np.ascontiguousarray(adaptation.moments[look], np.float64).tobytes())


@lru_cache(maxsize=16)
def _adapted(shipped: Any, moments: bytes) -> Engine:
    """Make an engine once for all phones of a look that answer in one thread of a simulation."""
    adapted: Engine = shipped.adapted(np.frombuffer(moments))
    return adapted
