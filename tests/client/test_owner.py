"""What a phone takes for its owner's classes, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcaptor.client.owner import Owner
from fedcaptor.common.config import Usage

NOBODY = np.zeros((0, 4))
CENTROIDS = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])


def settings(**changes: float) -> Usage:
    return Usage(**{"min_share": 0.1, "max_classes": 3, "prior": 0.0, **changes})


def test_own_classes_have_their_share_of_the_usage() -> None:
    owner = Owner.of(np.array([60.0, 9.0, 31.0, 0.0]), NOBODY, settings())
    assert owner.classes.tolist() == [0, 2]
    np.testing.assert_allclose(owner.usage, [0.6, 0.09, 0.31, 0])
    assert owner.cluster == -1


def test_the_most_used_class_is_own_however_small_its_share() -> None:
    owner = Owner.of(np.array([1.0, 2.0, 1.0, 1.0]), NOBODY, settings(min_share=0.9))
    assert owner.classes.tolist() == [1]


def test_there_are_no_more_own_classes_than_configured_and_ties_go_to_the_lower_label() -> None:
    assert Owner.of(np.ones(4), NOBODY, settings(max_classes=2)).classes.tolist() == [0, 1]


def test_the_nearest_centroid_counts_as_so_many_uses() -> None:
    counts = np.array([0.0, 0.0, 4.0, 0.0])
    owner = Owner.of(counts, CENTROIDS, settings(prior=4.0))
    assert owner.cluster == 1
    np.testing.assert_allclose(owner.usage, [0, 0, 0.75, 0.25])
    assert owner.classes.tolist() == [2, 3]
    np.testing.assert_array_equal(owner.counts, counts)


def test_the_prior_by_hand() -> None:
    owner = Owner.of(np.array([3.0, 1.0, 0.0, 0.0]), NOBODY, settings())
    prior = owner.prior(0.9)
    np.testing.assert_allclose(prior, [0.9 * 0.76 / 1.02, 0.9 * 0.26 / 1.02, 0.05, 0.05])


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=8), st.floats(0.5, 0.99))
def test_a_prior_is_a_distribution_without_zeros(counts: list[float], inside: float) -> None:
    owner = Owner.of(np.array(counts), np.zeros((0, len(counts))), settings())
    prior = owner.prior(inside)
    assert (prior > 0).all()
    if len(owner.classes) < len(counts):
        assert prior.sum() == pytest.approx(1)
        assert prior[owner.classes].sum() == pytest.approx(inside)


def test_an_image_between_two_classes_is_of_the_one_that_the_owner_meets() -> None:
    owner = Owner.of(np.array([50.0, 50.0, 0.0, 0.0]), NOBODY, settings())
    unsure = np.array([[0.45, 0.0, 0.55, 0.0], [0.0, 0.0, 0.02, 0.98], [0.9, 0.1, 0.0, 0.0]])
    assert owner.meets(unsure).tolist() == [True, False, True]
    stranger = Owner.of(np.array([0.0, 0.0, 50.0, 0.0]), NOBODY, settings())
    assert stranger.meets(unsure).tolist() == [True, True, False]
