"""Preference clusters: projections, the first centroids, k-means steps and what may be published."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedcaptor.common.distances import js_divergence
from fedcaptor.common.statistics import in_block
from fedcaptor.common.statistics.usage import cooccurrence, cooccurrence_matrix
from fedcaptor.server.clusters import (
    coarse_classes,
    expected_shares,
    first_centroids,
    next_centroids,
    publishable,
    spread,
    to_simplex,
)
from fedcaptor.server.planning import cluster_classes

FINITE = st.floats(-5, 5)


def test_nearest_distributions_by_hand() -> None:
    points = np.array([[0.2, 0.8], [2.0, 0.0], [0.0, 0.0], [-1.0, 0.5], [0.7, 0.7]])
    np.testing.assert_allclose(to_simplex(points), [[0.2, 0.8], [1, 0], [0.5, 0.5], [0, 1], [0.5, 0.5]], atol=1e-12)
    np.testing.assert_allclose(to_simplex(np.array([[0.9, -0.4, 0.55, 0.3]])), [[0.65, 0, 0.3, 0.05]])


@given(arrays.arrays(float, st.tuples(st.just(1), st.integers(1, 5)), elements=FINITE), st.integers(0, 99))
def test_no_distribution_is_nearer(points: np.ndarray, seed: int) -> None:
    found = to_simplex(points)
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(1), 1)
    others = np.random.default_rng(seed).dirichlet(np.full(points.shape[1], 0.5), 200)
    around = 0.99 * found + 0.01 * others  # where a better one would be seen, as the distance is convex
    for candidates in (others, around):
        assert np.square(found - points).sum() <= np.square(candidates - points).sum(1).min() + 1e-9


def test_expected_shares_by_hand() -> None:
    half_normal = 0.1 * np.sqrt(2 / np.pi)  # mean of what noise of 0.1 leaves above zero
    found = expected_shares(np.array([[1.0, 0.0, 0.0]]), np.array([[0.1]]))
    np.testing.assert_allclose(found, np.array([[1, half_normal, half_normal]]) / (1 + 2 * half_normal))
    np.testing.assert_allclose(expected_shares(np.array([[0.7, 0.3, 0.0]]), np.zeros((1, 1))), [[0.7, 0.3, 0]])
    far = expected_shares(np.array([[1.0, -40.0]]), np.array([[1.0]]))  # e^-800 is no number
    assert 0 < far[0, 1] < 0.03


def test_classes_that_seem_to_cover_the_usage_do() -> None:
    """A cluster of many small shares, seen through noise of their size; its plan is to serve 90 % of the usage."""
    usage, noise = np.array([0.4, 0.3, 0.1, 0.05, 0.05, 0.04, 0.03, 0.03]), 0.04
    noisy = usage + np.random.default_rng(0).normal(0, noise, (2000, 8))
    expected, nearest = expected_shares(noisy, np.full((2000, 1), noise)), to_simplex(noisy)
    assert np.square(expected - usage).mean() < np.square(nearest - usage).mean()
    served = [np.mean([usage[cluster_classes(row, 0.9)].sum() for row in rows]) for rows in (nearest, expected)]
    assert served[0] < 0.89 < 0.91 < served[1]


HABITS = np.array([[0.5, 0.3, 0.2, 0, 0, 0], [0, 0, 0, 0.6, 0.2, 0.2]])


def test_first_centroids_find_classes_that_are_met_together() -> None:
    rng = np.random.default_rng(0)
    usage = np.concatenate([rng.dirichlet(50 * habit + 1e-3, 40) for habit in HABITS])
    total = np.sum([cooccurrence(u) for u in usage], 0)
    found = first_centroids(cooccurrence_matrix(total, 6), 2, seed=0)
    found = found[np.argsort(found[:, 3])]
    np.testing.assert_allclose(found, HABITS, atol=0.05)
    np.testing.assert_allclose(found.sum(1), 1)


@given(st.integers(0, 10**6))
def test_one_centroid_is_the_mean_usage(seed: int) -> None:
    """Rows of the co-occurrence matrix count as often as their class is met: together they are everybody's usage."""
    usage = np.random.default_rng(seed).dirichlet([0.3, 0.3, 3.0, 1.0], 9)
    total = np.sum([cooccurrence(u) for u in usage], 0)
    np.testing.assert_allclose(first_centroids(cooccurrence_matrix(total, 4), 1, 0)[0], usage.mean(0), atol=1e-9)


def test_first_centroids_of_few_classes_and_of_noise_alone() -> None:
    one = cooccurrence_matrix(cooccurrence(np.array([0.0, 1.0, 0.0])), 3)
    np.testing.assert_allclose(first_centroids(one, 2, 0), [[0, 1, 0]])
    np.testing.assert_allclose(first_centroids(-one, 2, 0), [[1 / 3] * 3])


def test_next_centroids_are_means_and_count_their_phones() -> None:
    usage = [([1.0, 0, 0], 0), ([0.5, 0.5, 0], 0), ([0, 0, 1.0], 1)]
    total = np.sum([in_block(np.array(u), block, 3) for u, block in usage], 0)
    before = np.full((3, 3), 1 / 3)
    centroids, counts = next_centroids(total, before, deviation=0.0)
    np.testing.assert_allclose(centroids, [[0.75, 0.25, 0], [0, 0, 1], [1 / 3] * 3])
    np.testing.assert_allclose(counts, [2, 1, 0])


def test_a_block_that_noise_explains_keeps_its_centroid() -> None:
    before = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    total = np.array([[9.0, 0, 0, 0], [3.0, 0.5, 0, 0]]).ravel()
    centroids, counts = next_centroids(total, before, deviation=1.0)  # two deviations of four entries' sum: 4
    assert centroids[0].argmax() == 0
    assert centroids[0, 0] > 0.75
    np.testing.assert_allclose(centroids[1], before[1])
    np.testing.assert_allclose(counts, [9, 3.5])


def test_small_clusters_join_the_nearest_by_weight() -> None:
    centroids = np.array([[1.0, 0, 0], [0.8, 0.2, 0], [0, 0, 1.0]])
    kept, counts = publishable(centroids, np.array([30.0, 10.0, 40.0]), floor=20, alike=0.0, merge_alike=False)
    np.testing.assert_allclose(kept, [[0.95, 0.05, 0], [0, 0, 1]])
    np.testing.assert_allclose(counts, [40, 40])


def test_alike_clusters_merge_only_when_asked() -> None:
    centroids, counts = np.array([[0.5, 0.5, 0], [0.51, 0.49, 0], [0, 0, 1.0]]), np.array([30.0, 30.0, 30.0])
    assert len(publishable(centroids, counts, 20, 0.05, merge_alike=False)[0]) == 3
    kept, sizes = publishable(centroids, counts, 20, 0.05, merge_alike=True)
    np.testing.assert_allclose(kept, [[0.505, 0.495, 0], [0, 0, 1]])
    np.testing.assert_allclose(sizes, [60, 30])


def test_fewer_phones_than_the_floor_leave_one_cluster() -> None:
    kept, counts = publishable(np.eye(3), np.array([-4.0, -2.0, 3.0]), 20, 0.05, merge_alike=True)
    assert kept.shape == (1, 3)
    np.testing.assert_allclose(counts, [3])


@given(st.data(), st.integers(1, 8), st.integers(2, 5), st.booleans())
def test_nothing_below_the_floor_is_published(data: st.DataObject, k: int, classes: int, merge_alike: bool) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    centroids = rng.dirichlet(np.full(classes, 0.5), k)
    counts = data.draw(arrays.arrays(float, k, elements=st.floats(-30, 200)))
    given = centroids.copy(), counts.copy()
    kept, sizes = publishable(centroids, counts, 50, 0.05, merge_alike)
    np.testing.assert_array_equal(centroids, given[0])
    np.testing.assert_array_equal(counts, given[1])
    assert len(kept) == 1 or sizes.min() >= 50
    assert sizes.sum() == pytest.approx(np.maximum(counts, 0).sum())
    np.testing.assert_allclose(kept.sum(1), 1)
    if merge_alike and len(kept) > 1:
        pairs = [(a, b) for a in range(len(kept)) for b in range(a)]
        assert min(js_divergence(kept[a], kept[b]) for a, b in pairs) >= 0.05


def test_classes_whose_weights_point_the_same_way_are_counted_together() -> None:
    output = np.array([[1.0, 0.1], [0.1, 1.0], [5.0, 0.2], [0.0, 3.0]])
    coarse = coarse_classes(output, 2, seed=0)
    assert coarse[0] == coarse[2] != coarse[1] == coarse[3]
    np.testing.assert_allclose(spread(np.array([[0.8, 0.2]]), coarse)[0, [0, 2]], [0.4 if coarse[0] == 0 else 0.1] * 2)
