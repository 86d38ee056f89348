"""Photos of simulated cameras: images with corruptions, whose strengths a scenario gives.

Formulas after Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
(ICLR 2019), with a strength of one's own in place of five severities: Gaussian noise and blur, contrast about an
image's mean, JPEG. `light` multiplies grey levels, as less exposure does; `warmth` lowers blue or red.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter

from fedcaptor.common.arrays import Images
from fedcaptor.common.config import Config, Look
from fedcaptor.common.config.schema.simulated import strength_of
from fedcaptor.common.random_streams import Stream, stream

Levels = npt.NDArray[np.float32]
"""Grey levels [N, H, W, C], in [0, 1] before a corruption."""


def _blur(x: Levels, sigma: float, rng: np.random.Generator) -> Levels:
    blurred: Levels = gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")
    return blurred


def _noise(x: Levels, sigma: float, rng: np.random.Generator) -> Levels:
    return x + rng.normal(0, sigma, x.shape).astype(np.float32)


def _contrast(x: Levels, factor: float, rng: np.random.Generator) -> Levels:
    mean: Levels = x.mean((1, 2), keepdims=True)
    return (x - mean) * np.float32(factor) + mean


def _light(x: Levels, factor: float, rng: np.random.Generator) -> Levels:
    return x * np.float32(factor)


def _warmth(x: Levels, warmth: float, rng: np.random.Generator) -> Levels:
    if x.shape[3] != 3:
        return x
    return x * np.array([1 + min(warmth, 0), 1 - abs(warmth) / 4, 1 - max(warmth, 0)], np.float32)


def _jpeg(x: Levels, quality: float, rng: np.random.Generator) -> Levels:
    return np.stack([_coded(image, round(quality)) for image in x]).astype(np.float32)


def _coded(image: Levels, quality: int) -> Levels:
    file, grey = BytesIO(), image.shape[2] == 1
    pixels = np.rint(image * 255).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if grey else pixels).save(file, "JPEG", quality=quality)
    found: Levels = np.asarray(Image.open(file)).astype(np.float32) / np.float32(255)
    return found[..., None] if grey else found


_FORMULAS: dict[str, Callable[[Levels, float, np.random.Generator], Levels]] = {
    "blur": _blur,
    "noise": _noise,
    "contrast": _contrast,
    "light": _light,
    "warmth": _warmth,
    "jpeg": _jpeg,
}


def corrupted(images: Images, corruptions: Sequence[str], rng: np.random.Generator) -> Images:
    """Apply corruptions such as `blur=1.0`, one after the other, to uint8 images [N, H, W, C]."""
    x: Levels = images.astype(np.float32) / np.float32(255)
    for corruption in corruptions:
        name, strength = strength_of(corruption)
        x = _FORMULAS[name](x, strength, rng).clip(np.float32(0), np.float32(1))
    return np.rint(x * 255).astype(np.uint8)


def in_look(images: Images, looks: Sequence[Look], number: int, seed: int) -> Images:
    """Photograph images [N, H, W, C] in look `number`; equal calls give equal photos."""
    return corrupted(images, looks[number].corruptions, stream(seed, Stream.CORRUPTIONS, number))


def drawn(config: Config, phone: int) -> int:
    """Draw the look of a simulated phone's photos by the run's seed and the phone's number; 0 without looks."""
    if not config.looks:
        return 0
    shares = np.cumsum([look.share for look in config.looks])
    place = stream(config.run.seed, Stream.LOOK, phone).random() * shares[-1]
    return int(np.searchsorted(shares, place, side="right"))
