"""Distances between distributions over classes."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedcaptor.common.errors import DataError

_SUM_TOLERANCE = 1e-6


def _vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Check that values are one axis of finite numbers, none negative; raises DataError otherwise."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise DataError(f"{name} has shape {x.shape}, expected one axis with at least 1 entry; reshape it")
    if not bool(np.isfinite(x).all()) or float(x.min()) < 0:
        raise DataError(f"{name} holds an entry that is negative or not finite, the bound is 0; leave it out")
    return x


def normalise(counts: ArrayLike, smoothing: float) -> NDArray[np.float64]:
    """Turn `counts` [k] into a distribution, float64 [k]: (count + smoothing) / (sum + smoothing × k).

    `smoothing` is a pseudo-count per entry. Nothing counted at all gives the uniform distribution. Raises DataError
    when an entry or `smoothing` is negative or not finite, or `counts` is not one axis with at least one entry.
    """
    if not (np.isfinite(smoothing) and smoothing >= 0):
        raise DataError(f"smoothing {smoothing} must be finite and at least 0; raise it")
    x = _vector("counts", counts)
    peak = max(float(x.max()), float(smoothing))
    if peak == 0:
        return np.full(x.size, 1 / x.size)
    x = x / peak + smoothing / peak  # by the peak first, so that the sum cannot overflow
    return x / x.sum()


def class_posterior(likelihoods: NDArray[np.float64], usage: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the probability that each image shows each class [n, C], by Bayes' rule with the prior `usage` [C].

    `likelihoods` [n, C] are of each image by class, up to a factor for each image.
    """
    joint = likelihoods * usage
    return np.asarray(joint / joint.sum(1, keepdims=True))


def class_shares(
    probabilities: NDArray[np.float64], memory: NDArray[np.float64], steps: int = 60
) -> NDArray[np.float64]:
    """Correct softmax outputs [n, C] by the owner's class shares; the result [n, C] has rows that sum to one.

    A classifier's mistakes look like classes that the owner does not have. Expectation maximisation estimates the
    owner's class shares together with the images' classes (Saerens, Latinne & Decaestecker 2002); `memory` [C] are
    earlier counts, in images.
    """
    usage = np.full(probabilities.shape[1], 1 / probabilities.shape[1])
    posterior = probabilities
    for _ in range(steps):
        posterior = class_posterior(probabilities, usage)
        usage = posterior.sum(0) + memory + 1e-9
        usage /= usage.sum()
    return posterior


def js_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """Compute the Jensen–Shannon divergence of two distributions [k] in bits: 0 when equal, 1 when they share no entry.

    Written out because phones call it in their message path, which does without scipy; `scipy.spatial.distance` has the
    square root only, and squaring it again would not give the bits back to the last digit.

    Raises DataError on different lengths, or an argument that is not a distribution (sums to 1 within 1e-6).
    """
    a, b = _vector("p", p), _vector("q", q)
    if a.shape != b.shape:
        raise DataError(f"p has {a.size} entries and q {b.size}; compare distributions over the same classes")
    for name, x in (("p", a), ("q", b)):
        if abs(float(x.sum()) - 1) > _SUM_TOLERANCE:
            raise DataError(f"{name} sums to {float(x.sum()):.6g}, a distribution to 1; normalise it")
    a, b = a / a.sum(), b / b.sum()
    total = a + b

    def half(x: NDArray[np.float64]) -> float:
        held = x > 0
        return float((x[held] * np.log2(2 * x[held] / total[held])).sum()) / 2

    return min(max(half(a) + half(b), 0.0), 1.0)
