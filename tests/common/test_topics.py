"""Mixtures of topics, by hand and recovered from owners."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedcaptor.common.topics import mixture, shared_out

TOPICS = np.array([[0.7, 0.3, 0, 0], [0, 0, 0.6, 0.4], [0, 0.2, 0, 0.8]])


@pytest.mark.parametrize("mixed", [[1, 0, 0], [0.5, 0.5, 0], [0.3, 0.6, 0.1]])
def test_the_mixture_of_an_owner_is_found(mixed: list[float]) -> None:
    counts = 1000 * np.array(mixed) @ TOPICS
    np.testing.assert_allclose(mixture(TOPICS, counts) @ TOPICS, counts / 1000, atol=0.02)


def test_images_count_like_what_was_met() -> None:
    labels = np.array([0, 0, 1, 2])
    counted = mixture(TOPICS, np.bincount(labels, minlength=4).astype(float))
    np.testing.assert_allclose(mixture(TOPICS, np.zeros(4), np.eye(4)[labels]), counted, atol=1e-6)


def test_nothing_met_gives_equal_parts() -> None:
    np.testing.assert_allclose(mixture(TOPICS, np.zeros(4)), [1 / 3] * 3)


@given(arrays.arrays(float, (3, 5), elements=st.floats(0, 1)), arrays.arrays(float, 5, elements=st.floats(0, 1)))
def test_what_is_shared_out_is_the_usage(topics: np.ndarray, counts: np.ndarray) -> None:
    usage = counts / max(counts.sum(), 1)
    parts = shared_out(usage, topics)
    assert parts.min() >= 0
    np.testing.assert_allclose(parts.sum(0), usage, atol=1e-9)


def test_steps_over_many_owners_find_the_interests_that_they_have() -> None:
    """Owners have two of three interests: no class tells of one alone, and k-means would find pairs of interests."""
    rng = np.random.default_rng(0)
    interests = np.repeat(np.eye(3), 3, axis=1) / 3
    owners = [rng.dirichlet([1, 1]) @ interests[rng.permutation(3)[:2]] for _ in range(60)]
    topics = rng.dirichlet(np.ones(9), 3)
    for _ in range(60):
        total = np.sum([shared_out(usage, topics) for usage in owners], axis=0)
        topics = total / total.sum(1, keepdims=True)
    nearest = np.abs(topics[:, None] - interests[None]).sum(2).min(0)
    assert nearest.max() < 0.15
