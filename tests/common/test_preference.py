"""Preference matrices: normalising, pooling and joining by hand, and what must hold for any values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedcaptor.common.groups import ChannelGroups, Group
from fedcaptor.common.preference import cluster_means, join, layer_slices, normalise, share_out

SHARES = arrays(np.float64, (5, 4), elements=st.floats(0, 1e3, width=32))
COUNTS = arrays(np.float64, 4, elements=st.floats(0, 1e4, width=32))


def test_rows_of_a_layer_follow_the_groups_order() -> None:
    groups = tuple(Group(name, n, (), (name,), output=name == "z") for name, n in (("b", 3), ("a", 2), ("z", 7)))
    described = ChannelGroups("any", (1, 1, 1), groups, (), {})
    assert layer_slices(described) == [slice(0, 3), slice(3, 5)]


def test_each_class_of_each_layer_has_unit_norm() -> None:
    first, second = np.array([[3.0, 0.0], [4.0, 0.0]]), np.array([[2.0, 1e-300]])
    found = normalise([first, second])
    np.testing.assert_allclose(found, [[0.6, 0], [0.8, 0], [1, 1]], rtol=1e-6)
    assert found.dtype == np.float32


@given(SHARES, st.floats(1e-3, 1e3))
def test_normalising_forgets_how_many_images_there_were(block: np.ndarray, times: float) -> None:
    found = normalise([block])
    np.testing.assert_allclose(normalise([block * times]), found, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), block.any(0), atol=1e-6)


def test_cluster_means_are_means_and_indexing_hands_them_to_all_members() -> None:
    matrix = np.array([[1, 2], [3, 4], [10, 20]], dtype=np.float32)
    pooled = cluster_means(matrix, np.array([2, 2, 0]), 4)
    np.testing.assert_array_equal(pooled, [[10, 20], [0, 0], [2, 3], [0, 0]])
    assert pooled.dtype == np.float32
    np.testing.assert_array_equal(pooled[np.array([2, 2, 0])], [[2, 3], [2, 3], [10, 20]])


@given(SHARES, arrays(np.int64, 5, elements=st.integers(0, 2)))
def test_cluster_means_keep_what_indexing_gave(matrix: np.ndarray, assignment: np.ndarray) -> None:
    once = cluster_means(matrix, assignment, 3)[assignment]
    np.testing.assert_allclose(cluster_means(once, assignment, 3)[assignment], once, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(once.sum(0), matrix.sum(0), rtol=1e-9, atol=1e-9)


def test_a_clusters_score_is_shared_out_by_pictures_and_one_filters_is_its_own() -> None:
    pooled, pictures = np.array([[4.0, 1.0], [3.0, 5.0]]), np.array([[0.9, 0.1], [0.3, 0.7], [0.2, 0.8]])
    found = share_out(pooled, np.array([0, 0, 1]), pictures)
    np.testing.assert_allclose(found, [[6, 0.25], [2, 1.75], [3, 5]], rtol=1e-9)


@given(SHARES, arrays(np.int64, 5, elements=st.integers(0, 2)))
def test_shared_out_scores_pool_to_what_was_shared(matrix: np.ndarray, assignment: np.ndarray) -> None:
    pooled = cluster_means(matrix, assignment, 3)
    np.testing.assert_allclose(
        cluster_means(share_out(pooled, assignment, matrix[::-1]), assignment, 3), pooled, rtol=1e-6
    )


def test_join_by_hand() -> None:
    measured, visual = np.array([[3.0, 1.0, 0.0]]), np.array([[0.2, 0.2, 0.6]])
    # Classes 0 and 1 are believed to a half, class 2 not at all: the measured row hands out half of 0.2 + 0.2.
    found = join(measured, np.array([10, 10, 0]), visual, weight=0.0, shrink=10.0)
    np.testing.assert_allclose(found, [[0.75 * 0.2 + 0.1, 0.25 * 0.2 + 0.1, 0.6]], rtol=1e-6)
    mixed = join(measured, np.array([10, 10, 0]), visual, weight=0.5, shrink=10.0)
    np.testing.assert_allclose(mixed, (found + visual) / 2, rtol=1e-6)


def test_join_at_its_ends() -> None:
    measured, visual = np.array([[3.0, 1.0], [0.0, 0.0], [-1.0, 1.0]]), np.array([[0.1, 0.9]] * 3)
    many, none = np.array([1e9, 1e9]), np.zeros(2)
    np.testing.assert_allclose(join(measured, many, visual, 0, 1), [[0.75, 0.25], [0.1, 0.9], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(join(measured, none, visual, 0, 0), visual, rtol=1e-6)
    np.testing.assert_allclose(join(measured, many, visual, 1, 1), visual, rtol=1e-6)
    # Noise may take a count below zero: as if nobody had seen the class.
    np.testing.assert_allclose(join(measured, np.array([-5.0, -1.0]), visual, 0, 5), visual, rtol=1e-6)


@given(SHARES, COUNTS, SHARES, st.floats(0, 1), st.floats(0, 100))
def test_joined_rows_are_distributions(
    measured: np.ndarray, presence: np.ndarray, visual: np.ndarray, weight: float, shrink: float
) -> None:
    found = join(measured, presence, visual, weight, shrink)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


@given(SHARES, SHARES)
def test_an_unseen_class_keeps_its_data_free_share(measured: np.ndarray, visual: np.ndarray) -> None:
    measured[:, 1] = 0
    positive = visual + 0.01
    found = join(measured, np.array([50, 0, 50, 50]), positive, 0.0, 20.0)
    np.testing.assert_allclose(found[:, 1], positive[:, 1] / positive.sum(1), rtol=1e-5)


@pytest.mark.parametrize(("weight", "shrink"), [(-0.1, 1.0), (1.1, 1.0), (0.5, -1.0)])
def test_join_refuses_what_is_out_of_bounds(weight: float, shrink: float) -> None:
    with pytest.raises(ValueError, match="must"):
        join(np.ones((1, 2)), np.ones(2), np.ones((1, 2)), weight, shrink)
