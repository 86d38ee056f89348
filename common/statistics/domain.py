"""How photos look, and how they shift a network's batch norms: by kind of look, which a phone finds for itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedcaptor.common import domain, look
from fedcaptor.common.arrays import Array, Floats, Tensors
from fedcaptor.common.errors import WireError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.statistics.base import PhoneView, Precision, Statistic, in_block, nearest

if TYPE_CHECKING:
    from fedcaptor.common.config import Config

MOST = 8
"""Most looks that are told apart: `domain.looks`."""
COUNTED = 0.5
"""Norm of the entry that counts a phone, in a vector of norm 1; what is counted has the rest."""
_NUMBER, _MOMENT = 2.8, 0.2
"""Root mean square of the numbers of a look, as against the server's images, and of moments, that is not clipped.
Images blurred by a pixel have a norm of 6 to 7, noisy ones of 12 at most (grey: of 6.9, colour: of 11.9), VGG-16's
moments one of 17 (of 19.5)."""


class ByLook(NamedTuple):
    """Sums over phones by look: `phones` [L], and `sums` [L, n] of what each of them has."""

    phones: Floats
    sums: Floats


class Look(Statistic):
    """The look of a phone's photos, less that of the server's images, in the block of the nearest look: a step of
    k-means. Each block counts its phones.
    """

    name = kind = "look"
    tensors = frozenset({"look_source", "looks"})
    signed = True

    def share(self, config: Config) -> float | None:
        return config.privacy.look_share if config.domain.enabled else 0.0

    def sums(self, config: Config, round: int) -> int:
        iterations = config.domain.iterations if config.domain.looks > 1 else 1
        return iterations if config.domain.enabled and round == 1 else 0

    def longest(self, groups: ChannelGroups) -> int:
        return self.length(groups, MOST)

    def length(self, groups: ChannelGroups, blocks: int) -> int:
        return blocks * (1 + look.length(groups.input_shape[0]))

    def vector(self, phone: PhoneView, tensors: Tensors) -> Floats:
        own, source = phone.look(), _source(tensors, phone.groups)
        looks = looks_in(tensors, phone.groups)
        if own is None:
            return np.zeros(self.length(phone.groups, len(looks)))
        return in_block(_counted(own - source, _NUMBER), nearest(own, looks), len(looks))

    def decode(self, total: Floats, groups: ChannelGroups) -> ByLook:
        """Phones of each look, and sums of their looks' differences from the server's images."""
        return _decoded(total, look.length(groups.input_shape[0]), _NUMBER)

    def precision(self, config: Config, groups: ChannelGroups, clusters: int) -> Precision:
        scale = entry_scale(look.length(groups.input_shape[0]), _NUMBER)
        return Precision("a number of one look, of equally many phones", scale * config.domain.looks, 0.5)


class Moments(Statistic):
    """Batch norms' moments on a phone's photos, less those that the server expects of its look, in the look's block."""

    name = kind = "moments"
    tensors = frozenset({"looks", "expected"})
    rotated = True
    signed = True

    def share(self, config: Config) -> float | None:
        return config.privacy.moments_share if config.domain.enabled and config.domain.moments else 0.0

    def sums(self, config: Config, round: int) -> int:
        return int(config.domain.enabled and config.domain.moments and round == 1)

    def length(self, groups: ChannelGroups, blocks: int) -> int:
        return blocks * (1 + domain.length(groups.tensors))

    def longest(self, groups: ChannelGroups) -> int:
        return self.length(groups, MOST)

    def vector(self, phone: PhoneView, tensors: Tensors) -> Floats:
        looks, size = looks_in(tensors, phone.groups), domain.length(phone.groups.tensors)
        expected = tensors["expected"]
        if expected.shape != (len(looks), size):
            raise WireError("wrong_shape", f"expected moments are {expected.shape}, must be {(len(looks), size)}")
        own, found = phone.look(), phone.moments()
        if own is None or found is None:
            return np.zeros(self.length(phone.groups, len(looks)))
        block = nearest(own, looks)
        return in_block(_counted(found - expected[block], _MOMENT), block, len(looks))

    def decode(self, total: Floats, groups: ChannelGroups) -> ByLook:
        """Phones of each look, and sums of their moments' differences from those expected."""
        return _decoded(total, domain.length(groups.tensors), _MOMENT)

    def precision(self, config: Config, groups: ChannelGroups, clusters: int) -> Precision:
        scale = entry_scale(domain.length(groups.tensors), _MOMENT)
        return Precision("a moment of one look, of equally many phones", scale * config.domain.looks, 0.1)


LOOK, MOMENTS = Look(), Moments()


def entry_scale(size: int, typical: float) -> float:
    """Return by how much an entry of one phone's vector is multiplied when `ByLook` is decoded."""
    return _clip(size, typical) / math.sqrt(1 - COUNTED**2)


def look_scale(groups: ChannelGroups) -> float:
    """Return `entry_scale` of looks."""
    return entry_scale(look.length(groups.input_shape[0]), _NUMBER)


def moments_scale(groups: ChannelGroups) -> float:
    """Return `entry_scale` of moments."""
    return entry_scale(domain.length(groups.tensors), _MOMENT)


def looks_in(tensors: Tensors, groups: ChannelGroups) -> Array:
    """Return the request's looks [L, n]. Raises WireError where they are of another width, or too many."""
    looks, size = tensors["looks"], look.length(groups.input_shape[0])
    if looks.ndim != 2 or not 1 <= len(looks) <= MOST or looks.shape[1] != size:
        raise WireError("wrong_shape", f"looks are {looks.shape}, expected (1 to {MOST}, {size})")
    return looks


def _source(tensors: Tensors, groups: ChannelGroups) -> Array:
    source, size = tensors["look_source"], look.length(groups.input_shape[0])
    if source.shape != (size,):
        raise WireError("wrong_shape", f"look_source is {source.shape}, expected ({size},)")
    return source


def _clip(size: int, typical: float) -> float:
    return typical * math.sqrt(max(size, 1))


def _within(values: Floats, clip: float) -> Floats:
    """Return values scaled to norm 1 at `clip`, and no further."""
    return values / max(clip, float(np.linalg.norm(values)))


def _counted(values: Floats, typical: float) -> Floats:
    """Return the count of one phone with its values [1 + n], together of norm 1 at most."""
    return np.concatenate([[COUNTED], math.sqrt(1 - COUNTED**2) * _within(values, _clip(len(values), typical))])


def _decoded(total: Floats, size: int, typical: float) -> ByLook:
    blocks = total.reshape(-1, 1 + size)
    return ByLook(blocks[:, 0] / COUNTED, blocks[:, 1:] * entry_scale(size, typical))
