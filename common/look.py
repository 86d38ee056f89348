"""The look of images: what a camera and its light leave in all of them, in a few numbers, and images re-rendered in it.

A look has six numbers for each channel of a fixed decorrelated colour space: the mean of the images' brightness, its
spread, and four that say how the logarithm of the images' power runs over 14 bands of radial frequency. It is an
average over images and tells hardly anything of what they show.

Images are re-rendered in another look by attenuating bands, or adding noise to them, until their own has changed as it
should. Exchanging amplitude spectra is how FDA (Yang & Soatto, CVPR 2020) adapts networks to another domain; here only
averages over many images are known of the other one.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Floats, Images
from fedcaptor.common.errors import DataError

Spectra = npt.NDArray[np.floating]
"""Cosine coefficients [N, C, H, W]. Unlike Fourier's they see no edge where an image ends, which would hide a blur."""

BANDS = 14
"""Bands of radial frequency, of equal width, from 0 to the largest frequency of an image (√½ cycles a pixel)."""

CURVE = 4
"""Numbers that describe the power over the bands: the first coefficients of a cosine transform."""

PER_CHANNEL = 2 + CURVE
"""Numbers of one channel: mean in tenths of the range, logarithm of the spread's square, and the curve of the power."""

_FLOOR = (8 / 255) ** 2 / BANDS
"""Variance of a pixel in one band that hardly matters: powers below it do not differ."""
_ROUNDS = 4  # of comparing what was rendered with the look that is wanted
_LEAST = 1e-9  # instead of zero, where a logarithm or a quotient is taken
_CLOSE = 0.05  # difference of looks that is not looked at further
_LOW = 3  # bands that show contrast, as noise hardly reaches them
_TENTHS = 10


def colour_space(channels: int) -> Floats:
    """Return the orthonormal matrix from pixels to decorrelated channels: brightness and, of colours, two opponents.

    Raises DataError for other images than grey and colour ones.
    """
    if channels == 1:
        return np.ones((1, 1))
    if channels != 3:
        raise DataError(f"images have {channels} channels, a look is known of 1 or 3: switch domain.enabled off")
    rows = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def length(channels: int) -> int:
    """Return how many numbers a look of images with so many channels has."""
    return PER_CHANNEL * channels


def look_of(images: Images) -> Floats:
    """Return the look [channels · 6] of at least one image, uint8 [N, H, W, C]."""
    if len(images) == 0:
        raise DataError("no image is there to take a look from: give one at least")
    return _look(*_parts(_decorrelated(images)))


def rendered(images: Images, change: Floats, seed: int = 0) -> Images:
    """Re-render images such that their look changes.

    Args:
        images: uint8 [N, H, W, C].
        change: What is added to their look [channels · 6].
        seed: Draws the noise, where the change asks for some.

    Returns:
        uint8 [N, H, W, C].
    """
    if len(images) == 0:
        return images
    x = _decorrelated(images)
    noise = np.random.default_rng(seed).normal(0, 1, x.shape).astype(np.float32)
    parts, noise_spectra = _parts(x), _parts(noise)[1]
    wanted, aim, found = _look(*parts) + change, np.array(change, np.float64), images
    for _ in range(_ROUNDS):
        found = _filtered(*parts, noise_spectra, aim.reshape(-1, PER_CHANNEL))
        missed = wanted - look_of(found)
        if np.abs(missed).max() < _CLOSE:
            break
        aim += missed
    return found


def _look(means: Floats, spectra: Spectra) -> Floats:
    power = np.log(_power(spectra) + _FLOOR)
    spread = np.log(means.var(0) + _FLOOR)
    return np.column_stack([_TENTHS * means.mean(0), spread, power @ _curves().T]).ravel()


def _filtered(means: Floats, spectra: Spectra, noise: Spectra, change: Floats) -> Images:
    """Change contrast, then attenuate each band or add noise to it, by the change of each channel's look [C, 6]."""
    had, size = _power(spectra), spectra.shape[2:]
    ratio = np.exp(change[:, 2:] @ _curves())  # of powers, the floor included
    power = np.maximum((had + _FLOOR) * ratio - _FLOOR, 0)
    contrast = np.exp(np.log(ratio[:, :_LOW]).mean(1) / 2)[:, None]  # of channels
    gain = contrast * np.sqrt(np.minimum(power / np.maximum(had * np.square(contrast), _LEAST), 1))
    added = np.sqrt(np.maximum(power - had * np.square(gain), 0) / np.maximum(_power(noise), _LEAST))
    own = means.var(0) + _FLOOR
    spread = np.sqrt(np.maximum(own * np.exp(change[:, 1]) - _FLOOR, 0) / own)
    brightness = means.mean(0) + change[:, 0] / _TENTHS + (means - means.mean(0)) * spread
    rest = _inverse(spectra * _between(gain, *size) + noise * _between(added, *size))
    return _pixels(rest + brightness[:, :, None, None])


def _decorrelated(images: Images) -> npt.NDArray[np.float32]:
    """Return images as floats [N, C, H, W] in the decorrelated colour space, grey levels in [0, 1]."""
    matrix = colour_space(images.shape[3]).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis((images.astype(np.float32) / 255) @ matrix.T, 3, 1))


def _pixels(x: Floats) -> Images:
    """Return uint8 images of what `_decorrelated` gives."""
    pixels = np.moveaxis(x, 1, 3) @ colour_space(x.shape[1])
    return np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8)


def _parts(x: npt.NDArray[np.float32]) -> tuple[Floats, Spectra]:
    """Return the mean of each image and channel [N, C], and the cosine transform of what differs from it."""
    means = x.mean((2, 3), dtype=np.float64)
    down, across = (_cosines(size) for size in x.shape[2:])
    return means, down @ (x - means[:, :, None, None].astype(np.float32)) @ across.T


def _inverse(spectra: Spectra) -> Floats:
    down, across = (_cosines(size) for size in spectra.shape[2:])
    return down.T @ spectra @ across


def _power(spectra: Spectra) -> Floats:
    """Return the variance of a pixel [C, bands] that each band makes, the mean over images."""
    place = _places(*spectra.shape[2:])
    band = np.minimum(place.astype(np.int64), BANDS - 1).ravel()
    energy = np.square(spectra).mean(0, dtype=np.float64) / place.size
    return np.stack([np.bincount(band, each.ravel(), BANDS) for each in energy])


@lru_cache(maxsize=8)
def _cosines(size: int) -> npt.NDArray[np.float32]:
    """Return the orthonormal cosine transform (DCT-II) as a matrix [size, size]."""
    angle = np.outer(np.arange(size), np.arange(size) + 0.5) * (math.pi / size)
    return (np.cos(angle) * np.where(np.arange(size) == 0, 1, math.sqrt(2))[:, None] / math.sqrt(size)).astype(
        np.float32
    )


@lru_cache(maxsize=1)
def _curves() -> Floats:
    """Return the orthonormal curves over bands [4, bands] whose shares a look has."""
    return _cosines(BANDS)[:CURVE].astype(np.float64)


@lru_cache(maxsize=8)
def _places(height: int, width: int) -> Floats:
    """Return where each coefficient [H, W] lies among the bands: its radial frequency in band widths."""
    radius = np.hypot(np.arange(height)[:, None] / height, np.arange(width)[None] / width)
    return radius * (BANDS / math.sqrt(2))


def _between(values: Floats, height: int, width: int) -> npt.NDArray[np.float32]:
    """Return what bands have [C, bands] at each coefficient [C, H, W], between the bands' middles geometrically."""
    place = _places(height, width) - 0.5
    logs = np.stack([np.interp(place, np.arange(BANDS), np.log(each + _LEAST)) for each in values])
    return np.exp(logs).astype(np.float32)
