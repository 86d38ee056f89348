"""Cluster phones by preference with federated k-means: private sums in, published centroids out (pure functions)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from sklearn.cluster import KMeans

from fedcaptor.common.arrays import Floats
from fedcaptor.common.distances import js_divergence
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.plugins import is_own, resolve


def to_simplex(values: Floats) -> Floats:
    """Project each row [K, C] onto the nearest distribution (Euclidean; Duchi et al. 2008)."""
    ordered = -np.sort(-values, axis=1)
    excess = (np.cumsum(ordered, axis=1) - 1) / np.arange(1, values.shape[1] + 1)
    count = (ordered > excess).sum(1)
    shift = excess[np.arange(len(values)), count - 1]
    return np.asarray(np.maximum(values - shift[:, None], 0.0))


def expected_shares(noisy: Floats, deviation: Floats) -> Floats:
    """Estimate the distributions [K, C] behind noisy ones by their posterior mean.

    The prior is that a share is not negative and any other value as likely: the estimate is the mean of the normal
    distribution around the noisy value, truncated at zero; each row is divided by its sum (uniform where nothing is
    left). The nearest distribution would have the noise in it: few classes with large shares seem to be most of the
    usage, and the others would not be served. `deviation` [K, 1] is the noise's standard deviation of a row's entries.
    """
    z = noisy / np.where(deviation > 0, deviation, 1.0)
    expected = np.maximum(noisy + deviation * np.exp(norm.logpdf(z) - norm.logcdf(z)), 0.0)
    total = expected.sum(1, keepdims=True)
    return np.asarray(np.divide(expected, total, out=np.full(noisy.shape, 1 / noisy.shape[1]), where=total > 0))


def coarse_classes(output: Floats, most: int, seed: int) -> npt.NDArray[np.int32]:
    """Number the coarse class [C] of each class, `most` in all: those whose `output` weights [C, D] point the same way.

    A network gives neighbouring weights to classes that look alike, and says so without an image.
    """
    rows = output / np.maximum(np.linalg.norm(output, axis=1, keepdims=True), 1e-12)
    return np.asarray(KMeans(most, n_init=4, random_state=seed).fit(rows).labels_, dtype=np.int32)


def spread(centroids: Floats, coarse: npt.NDArray[np.int32]) -> Floats:
    """Turn shares of coarse classes [K, G] into those of classes [K, C]: all of one coarse class [C] have the same."""
    return np.asarray(centroids[:, coarse] / np.bincount(coarse)[coarse])


def first_centroids(cooccurrence: Floats, k: int, seed: int, method: str = "kmeans") -> Floats:
    """Derive first centroids [≤ k, C] from a noisy sum of co-occurrences of classes [C, C].

    Row c, divided by its own sum, is the mean usage of those who meet class c.

    Weighted k-means of these rows joins classes that are met together; no further private data is needed. `method`: a
    user's own clustering instead, `package.module:object`.
    """
    if is_own(method):
        found = _own(method).first(cooccurrence, k, seed)
        return _checked(found, method, "first", range(1, k + 1), len(cooccurrence))
    matrix, classes = np.maximum(cooccurrence, 0), len(cooccurrence)
    weight = matrix.sum(1)
    met = weight > 1e-9
    if not met.any():
        return np.full((1, classes), 1 / classes)
    rows = matrix[met] / weight[met][:, None]
    k = min(k, len(rows))
    fitted = KMeans(k, n_init=8, random_state=seed).fit(rows, sample_weight=weight[met])
    return to_simplex(np.asarray(fitted.cluster_centers_, dtype=np.float64))


def next_centroids(total: Floats, before: Floats, deviation: float, method: str = "kmeans") -> tuple[Floats, Floats]:
    """Take one k-means step: new centroids [K, C] and phones in each [K], from a noisy sum of usage blocks.

    Usage sums to one, so a block's total counts its phones. A block that noise alone could explain (total below two
    standard deviations; `deviation`: of one entry) keeps its centroid.
    `method`: as for `first_centroids`.
    """
    blocks = total.reshape(before.shape)
    if is_own(method):
        moved, sizes = _own(method).next(blocks, before, deviation)
        moved, counts = _checked(moved, method, "next", [len(before)], before.shape[1]), np.asarray(sizes, np.float64)
        if counts.shape != (len(moved),) or not np.isfinite(counts).all():
            raise ConfigError(f"clusters.method {method!r} gave counts {counts.shape} in `next`, must be finite, [K]")
        return moved, counts
    counts = blocks.sum(1)
    real = counts > 2 * deviation * np.sqrt(before.shape[1])
    size = np.where(real, counts, 1.0)[:, None]
    moved = expected_shares(blocks / size, deviation / size)
    return np.where(real[:, None], moved, before / before.sum(1, keepdims=True)), counts


def publishable(
    centroids: Floats, counts: Floats, floor: float, alike: float, merge_alike: bool
) -> tuple[Floats, Floats]:
    """Join clusters until all may be published; returns centroids [K', C] and phones [K'].

    A cluster of fewer than `floor` phones joins the nearest one, as do centroids closer than `alike` bits where
    `merge_alike`. At least one is left.
    """
    centroids, counts = centroids.copy(), np.maximum(counts, 0.0)
    while len(centroids) > 1:
        i = int(counts.argmin())
        j, distance = _closest(centroids, i)
        if counts[i] >= floor:
            if not merge_alike:
                break
            pairs = [(*_closest(centroids, a), a) for a in range(len(centroids))]
            j, distance, i = min(pairs, key=lambda pair: pair[1])
            if distance >= alike:
                break
        weight = counts[i] + counts[j]
        share = counts[i] / weight if weight > 0 else 0.5
        centroids[j] = share * centroids[i] + (1 - share) * centroids[j]
        counts[j] = weight
        centroids, counts = np.delete(centroids, i, 0), np.delete(counts, i)
    return centroids, counts


def _own(method: str) -> Any:
    """The user's object; of a class, one made without arguments."""
    found = resolve(method, "clusters.method", "kmeans")
    return found() if isinstance(found, type) else found


def _checked(centroids: Any, method: str, step: str, counts: Collection[int], classes: int) -> Floats:
    """Raises ConfigError unless these are distributions [K, classes] with K one of `counts`."""
    found = np.asarray(centroids, np.float64)
    fits = found.ndim == 2 and len(found) in counts and found.shape[1] == classes
    if not fits or not (found >= 0).all() or not np.allclose(found.sum(1), 1):
        raise ConfigError(
            f"clusters.method {method!r} gave centroids {found.shape} in `{step}`, must be at most "
            f"({max(counts)}, {classes}), not negative, each row summing to 1"
        )
    return found


def _closest(centroids: Floats, i: int) -> tuple[int, float]:
    """Find the centroid closest to number `i`, with the divergence in bits."""
    distances = [np.inf if j == i else js_divergence(centroids[i], centroids[j]) for j in range(len(centroids))]
    return int(np.argmin(distances)), float(np.min(distances))
