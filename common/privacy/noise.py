"""Draw discrete Gaussian noise (Canonne, Kamath and Steinke 2020, algorithms 2 and 3), vectorised.

Uniform integers are exact. Each Bernoulli trial compares 53 random bits with a float64 probability, so its bias is
below 2**-52; that is the one departure from the exact sampler. Every random bit is taken by `Generator.bytes`, which
for `system_generator` is the operating system's own source.
"""

import math
import os
import secrets

import numpy as np
from numpy.typing import NDArray

from fedcaptor.common.errors import PrivacyError

_MAX_VARIANCE = 2.0**80
_CHUNK = 1 << 16


class _SystemGenerator(np.random.Generator):
    """Take `bytes` from the operating system; other methods use a stream that it seeded."""

    def bytes(self, length: int) -> bytes:
        return os.urandom(length)


def system_generator() -> np.random.Generator:
    """Make a generator for real noise: `bytes`, all that this module draws, is `os.urandom`, so nothing is repeatable.

    Methods other than `bytes` use Philox seeded with 256 secret bits, which is no cryptographic generator.
    Simulations pass their own seeded generator instead.
    """
    return _SystemGenerator(np.random.Philox(secrets.randbits(256)))


def discrete_gaussian(sigma2: float, size: int | tuple[int, ...], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw independent integers x with probability proportional to exp(-x² / (2 sigma2)), int64 of shape `size`.

    `sigma2` is in squared quanta; 0 gives zeros. The variance is at most sigma2 (less only where sigma2 is small).
    Raises PrivacyError when sigma2 is negative, not finite or above 2**80.
    Source: Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy", NeurIPS 2020, algorithm 3.
    """
    if not (math.isfinite(sigma2) and 0 <= sigma2 <= _MAX_VARIANCE):
        raise PrivacyError(f"noise variance {sigma2} is outside 0 to 2**80; lower the scale or the noise multiplier")
    out = np.zeros(size, np.int64)
    if sigma2 == 0:
        return out
    flat = out.reshape(-1)
    done = 0
    while done < flat.size:
        kept = _accepted(sigma2, min(_CHUNK, 2 * (flat.size - done) + 16), rng)
        take = min(kept.size, flat.size - done)
        flat[done : done + take] = kept[:take]
        done += take
    return out


def _accepted(sigma2: float, trials: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the proposals of `trials` discrete Laplace draws that pass the Gaussian rejection test."""
    t = math.isqrt(int(sigma2)) + 1
    y = _laplace(t, trials, rng)
    gap = np.abs(y).astype(np.float64) - sigma2 / t
    return y[bernoulli(np.exp(-(gap**2) / (2 * sigma2)), rng)]


def _laplace(t: int, trials: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw integers y with probability proportional to exp(-|y| / t); fewer than `trials`, as some are rejected."""
    low = _below(t, trials, rng)
    low = low[bernoulli(np.exp(-low / t), rng)]
    high = np.zeros(low.size, np.int64)
    running = np.arange(low.size)
    while running.size:  # a geometric count of heads, each of probability 1/e
        running = running[bernoulli(np.full(running.size, math.exp(-1)), rng)]
        high[running] += 1
    magnitude = low + t * high
    negative = (_words(low.size, rng) & np.uint64(1)).astype(bool)
    keep = ~(negative & (magnitude == 0))
    return np.where(negative, -magnitude, magnitude)[keep]


def _words(count: int, rng: np.random.Generator) -> NDArray[np.uint64]:
    return np.frombuffer(rng.bytes(8 * count), np.dtype("<u8")).astype(np.uint64)


def _below(bound: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw `count` exactly uniform integers in [0, bound): words past the last multiple of `bound` are redrawn."""
    words = _words(count, rng)
    last = np.uint64(2**64 // bound * bound - 1)
    while (over := np.flatnonzero(words > last)).size:
        words[over] = _words(over.size, rng)
    return (words % np.uint64(bound)).astype(np.int64)


def bernoulli(p: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw booleans [n], each True with its probability in `p` [n]."""
    return uniform(p.size, rng) < p


def uniform(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw multiples of 2**-53 in [0, 1), each as likely: float64 [count]."""
    return np.asarray((_words(count, rng) >> np.uint64(11)) * 2.0**-53, np.float64)
