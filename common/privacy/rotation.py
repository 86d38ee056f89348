"""Rotate a vector publicly at random, which spreads it over its entries, and round it to a bounded norm.

Source: Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation", ICML 2021, sections 3 and 4. Their rotation pads to a power of two. Here two Walsh–Hadamard blocks of the
largest power of two within the length overlap, one at each end: no entry is added, whatever the length.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from fedcaptor.common.arrays import Floats
from fedcaptor.common.privacy.noise import bernoulli

_TRIES = 64  # of which each succeeds with probability 1 - exp(-1/2) at least


def block(length: int) -> int:
    """Return over how many entries the rotation spreads each at least: more than half of `length`."""
    return 1 << (length.bit_length() - 1)


def rotate(x: Floats, seed: str) -> Floats:
    """Rotate `x` [d] by the signs that `seed` names; the norm stays. O(d log d).

    For signs drawn at random each entry of the result is sub-Gaussian with variance |x|² / block(d).
    """
    first, last = _signs(seed, x.size)
    out = x.copy()
    out[: first.size] = _hadamard(out[: first.size] * first)
    if first.size < x.size:
        out[-last.size :] = _hadamard(out[-last.size :] * last)
    return out


def rotate_back(x: Floats, seed: str) -> Floats:
    """Undo `rotate`."""
    first, last = _signs(seed, x.size)
    out = x.copy()
    if first.size < x.size:
        out[-last.size :] = _hadamard(out[-last.size :]) * last
    out[: first.size] = _hadamard(out[: first.size]) * first
    return out


def rounded_norm(norm: float, length: int) -> float:
    """Return the largest norm that `rounded` gives for vectors of `norm` and `length` entries.

    Source: Kairouz et al., β = exp(-1/2).
    """
    root = math.sqrt(length)
    return math.sqrt(min(norm**2 + length / 4 + norm + root / 2, (norm + root) ** 2))


def norm_for(length: int, growth: float) -> float:
    """Return the least norm, in quanta, whose square rounding raises by the factor 1 + `growth` at most."""
    fixed = length / 4 + math.sqrt(length) / 2
    return (1 + math.sqrt(1 + 4 * growth * fixed)) / (2 * growth)


def rounded(x: Floats, bound: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Round the entries of `x` [d] at random to neighbouring integers, such that their mean is `x`.

    The draw is repeated until the norm is at most `bound`, which is `rounded_norm` of a bound on |x|. After 64 times
    `x` is truncated (probability below 1e-13).
    """
    low = np.floor(x)
    above = x - low
    for _ in range(_TRIES):
        quanta = (low + bernoulli(above, rng)).astype(np.int64)
        if int(quanta @ quanta) <= bound**2:
            return quanta
    return np.trunc(x).astype(np.int64)


def _signs(seed: str, length: int) -> tuple[Floats, Floats]:
    """Return ±1 for both blocks: bits of SHAKE-256, so that every implementation has equal ones."""
    size = block(length)
    stream = hashlib.shake_256(f"fedcaptor rotation {seed}".encode()).digest(-(-2 * size // 8))
    bits = np.unpackbits(np.frombuffer(stream, np.uint8), count=2 * size, bitorder="little")
    signs = 1 - 2 * bits.astype(np.float64)
    return signs[:size], signs[size:]


def _hadamard(x: Floats) -> Floats:
    """Take the orthonormal Walsh–Hadamard transform of `x` [power of two], which is its own inverse."""
    half, y = 1, x
    while half < x.size:
        pairs = y.reshape(-1, 2, half)
        y = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1).ravel()
        half *= 2
    return y / math.sqrt(x.size)
