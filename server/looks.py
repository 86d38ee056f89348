"""Tell apart the kinds of photos that a fleet takes, by k-means over noisy sums of looks. Pure functions.

All looks here are differences from the look of the server's own images.
"""

from __future__ import annotations

import math

import numpy as np

from fedcaptor.common.arrays import Floats, Images
from fedcaptor.common.look import look_of
from fedcaptor.common.statistics.domain import COUNTED, ByLook

ALIKE = 2.0
"""Looks closer than this are one: photos of a phone's few classes differ by about as much."""

_DOUBT = 2.0  # standard deviations of noise by which a number of phones, and a look, must stand out of it


def first_looks(images: Images, seed: int) -> Floats:
    """Return looks [L, n] to begin k-means with: as the server's images would look in other light or out of other
    cameras. They are public, so that no sum is spent on them.
    """
    x, rng = images.astype(np.float32) / 255, np.random.default_rng(seed)
    blurred = (x + np.roll(x, 1, 1) + np.roll(x, 1, 2) + np.roll(x, (1, 1), (1, 2))) / 4
    mean = x.mean((1, 2), keepdims=True)
    noisy = x + rng.normal(0, 0.1, x.shape).astype(np.float32)
    changed = [x, 0.6 * x, 1 - 0.6 * (1 - x), mean + 0.5 * (x - mean), blurred, noisy]
    looks: Floats = np.array([look_of(np.rint(np.clip(each, 0, 1) * 255).astype(np.uint8)) for each in changed])
    differences: Floats = looks - looks[0]
    return differences


def next_looks(found: ByLook, deviation: float, scale: float, most: int, floor: float = 0.0) -> tuple[Floats, Floats]:
    """Return looks [L, n] and their phones [L] after a step of k-means, shrunk as far as they are noise.

    Args:
        found: Noisy sums by look.
        deviation: Of the noise in an entry of a vector's sum.
        scale: By how much an entry of a look's sums is larger than that of the vector.
        most: Most looks to keep, those with the most phones.
        floor: Fewest phones of a look to be published; a smaller one is given up, and its phones find another.
    """
    least = max(floor, _DOUBT * deviation / COUNTED, 1.0)
    kept = np.flatnonzero(found.phones >= least)
    if not len(kept):
        kept = np.array([int(found.phones.argmax())])
    phones = np.maximum(found.phones[kept], 1.0)
    looks, phones = _merged(found.sums[kept] / phones[:, None], phones, scale * deviation)
    order = np.sort(np.argsort(-phones, kind="stable")[:most])
    looks, phones = looks[order], phones[order]
    energy, noise = np.square(looks).sum(1), _noise(looks, phones, scale * deviation)
    stands_out = energy > noise * (1 + _DOUBT * math.sqrt(2 / looks.shape[1]))
    return looks * np.where(stands_out, 1 - noise / np.maximum(energy, 1e-12), 0.0)[:, None], phones


def _merged(looks: Floats, phones: Floats, deviation: float) -> tuple[Floats, Floats]:
    """Merge looks that are alike, or that noise could have parted, the closest pair first."""
    while len(looks) > 1:
        noise = _noise(looks, phones, deviation)
        distance = np.square(looks[:, None] - looks[None]).sum(2) / (ALIKE**2 + noise[:, None] + noise[None])
        np.fill_diagonal(distance, math.inf)
        one, other = np.unravel_index(int(distance.argmin()), distance.shape)
        if distance[one, other] >= 1:
            break
        both = phones[[one, other]]
        looks[one] = both @ looks[[one, other]] / both.sum()
        phones[one] = both.sum()
        looks, phones = np.delete(looks, other, 0), np.delete(phones, other)
    return looks, phones


def _noise(looks: Floats, phones: Floats, deviation: float) -> Floats:
    """Return the expected squared norm of the noise in each look [L]."""
    noise: Floats = looks.shape[1] * np.square(deviation / phones)
    return noise
