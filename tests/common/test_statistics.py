"""Vectors that phones add up: their norms, which the noise is sized for, and their inverses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedcaptor.common import statistics
from fedcaptor.common.groups import ChannelGroups, Group
from fedcaptor.common.preference import layer_slices, normalise, pool

SHARES = arrays.arrays(float, st.integers(1, 12), elements=st.floats(0, 1e6))


def groups_of(channels: list[int], classes: int) -> ChannelGroups:
    layers = [Group(f"g{i}", count, (), ()) for i, count in enumerate(channels)]
    return ChannelGroups("by hand", (1, 1, 1), (*layers, Group("classes", classes, (), (), output=True)), (), {})


def test_cooccurrence_by_hand() -> None:
    vector = statistics.cooccurrence(np.array([0.6, 0.4, 0]))
    np.testing.assert_allclose(vector, [0.36, 2**0.5 * 0.24, 0, 0.16, 0, 0])
    np.testing.assert_allclose(statistics.cooccurrence_matrix(vector, 3), [[0.36, 0.24, 0], [0.24, 0.16, 0], [0, 0, 0]])


@given(SHARES)
def test_cooccurrence_has_the_norm_of_its_matrix_and_an_inverse(counts: np.ndarray) -> None:
    usage = counts / max(counts.sum(), 1e-12)
    vector = statistics.cooccurrence(usage)
    assert np.linalg.norm(vector) <= statistics.USAGE_CLIP + 1e-9
    np.testing.assert_allclose(statistics.cooccurrence_matrix(vector, len(usage)), np.outer(usage, usage), atol=1e-12)


def test_nearest_and_its_block() -> None:
    centroids = np.array([[1.0, 0], [0.4, 0.6], [0, 1.0]])
    usage = np.array([0.3, 0.7])
    assert statistics.nearest(usage, centroids) == 1
    np.testing.assert_array_equal(statistics.in_block(usage, 1, 3), [0, 0, 0.3, 0.7, 0, 0])


@given(arrays.arrays(float, st.integers(1, 6), elements=st.floats(0, 1)), st.integers(1, 8), st.data())
def test_a_block_holds_all_there_is(values: np.ndarray, blocks: int, data: st.DataObject) -> None:
    block = data.draw(st.integers(0, blocks - 1))
    vector = statistics.in_block(values, block, blocks).reshape(blocks, -1)
    np.testing.assert_array_equal(vector[block], values)
    assert np.count_nonzero(vector) == np.count_nonzero(values)


def test_an_outcome_is_within_its_clip() -> None:
    assert np.linalg.norm(np.ones(len(statistics.OUTCOME))) == pytest.approx(statistics.OUTCOME_CLIP)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.sampled_from([1e-300, 1e-6, 1.0, 1e30]),
)
def test_scores_are_within_their_clip_and_have_a_mean(
    channels: list[int], classes: int, seed: int, size: float
) -> None:
    """One phone's mean is its own scores on the classes that it has, whatever their size."""
    rng = np.random.default_rng(seed)
    groups = groups_of(channels, classes)
    scores = size * rng.exponential(size=(sum(channels), classes))
    present = rng.random(classes) < 0.6
    assignment = np.concatenate([rng.integers(2, size=c) + 2 * i for i, c in enumerate(channels)])
    clusters = int(assignment.max()) + 1
    blocks = normalise([scores[rows] * present for rows in layer_slices(groups)])
    pooled = statistics.unit_blocks(pool(blocks, assignment, clusters), assignment, groups)
    vector = statistics.scores_vector(pooled, present, len(channels))
    assert len(vector) == statistics.scores_length(groups, clusters)
    assert np.linalg.norm(vector) <= statistics.SCORES_CLIP + 1e-6  # profiles are in single precision
    mean, presence = statistics.scores_mean(vector, len(channels), classes)
    np.testing.assert_allclose(mean, pooled * present, atol=1e-6)
    np.testing.assert_array_equal(presence > 0, present)


def test_unit_blocks_are_one_norm_a_layer_and_class() -> None:
    groups = groups_of([2, 1], 2)
    pooled = np.array([[3.0, 0], [4.0, 0], [0.5, 2.0]])
    found = statistics.unit_blocks(pooled, np.array([0, 1, 2]), groups)
    np.testing.assert_allclose(found, [[0.6, 0], [0.8, 0], [1, 1]])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 10), st.integers(0, 10**6))
def test_a_packed_plan_is_one_size_and_comes_back(channels: list[int], classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = groups_of(channels, classes)
    kept = {
        g.name: np.sort(rng.choice(g.channels, rng.integers(1, g.channels + 1), replace=False))
        for g in groups.groups
        if rng.random() < 0.8
    }
    packed = statistics.pack_plan(kept, groups)
    assert packed.nbytes == -(-(sum(channels) + classes) // 8)
    found = statistics.unpack_plan(packed, groups)
    for group in groups.groups:
        np.testing.assert_array_equal(found[group.name], kept.get(group.name, np.arange(group.channels)))
