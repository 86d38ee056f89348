"""What a phone takes for its owner's classes, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcaptor.client.owner import Owner
from fedcaptor.common.arrays import Floats
from fedcaptor.common.config import Usage

NOTHING = np.zeros((0, 4))
NOBODY = np.zeros((0, 4))
CENTROIDS = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
SURE = np.eye(4)


def settings(**changes: float) -> Usage:
    return Usage(**{"min_share": 0.1, "max_classes": 3, "prior": 0.0, **changes})


def remembering(counts: list[float], centroids: Floats = NOBODY, **changes: float) -> Owner:
    return Owner.of(NOTHING, np.array(counts), centroids, settings(**changes))


def test_own_classes_have_their_share_of_the_usage() -> None:
    owner = remembering([60.0, 9.0, 31.0, 0.0])
    assert owner.classes.tolist() == [0, 2]
    np.testing.assert_allclose(owner.usage, [0.6, 0.09, 0.31, 0], atol=1e-3)
    assert owner.cluster == -1


def test_the_most_used_class_is_own_however_small_its_share() -> None:
    assert remembering([1.0, 2.0, 1.0, 1.0], min_share=0.9).classes.tolist() == [1]


def test_there_are_no_more_own_classes_than_configured_and_ties_go_to_the_lower_label() -> None:
    assert remembering([1.0, 1.0, 1.0, 1.0], max_classes=2).classes.tolist() == [0, 1]


def test_the_likeliest_centroid_counts_as_so_many_images() -> None:
    owner = remembering([0.0, 0.0, 4.0, 0.0], CENTROIDS, prior=4.0)
    assert owner.cluster == 1
    np.testing.assert_allclose(owner.usage, [0, 0, 0.75, 0.25], atol=0.03)
    assert owner.classes.tolist() == [2, 3]  # one class was never seen: the cluster meets it


def test_without_a_prior_there_is_a_likeliest_centroid_still() -> None:
    assert [remembering(list(40.0 * row), CENTROIDS, prior=0.0).cluster for row in CENTROIDS] == [0, 1]


def test_few_images_leave_an_owner_between_the_clusters_and_many_do_not() -> None:
    few, many = (Owner.of(SURE[[2] * n], np.zeros(4), CENTROIDS, settings(prior=4.0)) for n in (1, 60))
    assert few.usage[0] > 5 * many.usage[0]
    assert many.usage[2] > 0.95


def test_a_class_that_is_met_now_and_then_is_not_own() -> None:
    seen = SURE[[0] * 60 + [1] * 38 + [3] * 2]
    assert Owner.of(seen, np.zeros(4), NOBODY, settings(min_share=0.03)).classes.tolist() == [0, 1]


def test_doubtful_images_are_of_the_classes_that_the_owner_meets() -> None:
    """Two classes are taken for each other in half of the images: the owner of one does not get the other as well."""
    sure, unsure = SURE[[0] * 8], np.tile([0.6, 0.4, 0.0, 0.0], (8, 1))
    owner = Owner.of(np.concatenate([sure, unsure]), np.zeros(4), NOBODY, settings(min_share=0.05))
    assert owner.classes.tolist() == [0]
    scaled = Owner.of(np.concatenate([sure, 7 * unsure]), np.zeros(4), NOBODY, settings(min_share=0.05))
    np.testing.assert_allclose(scaled.usage, owner.usage)  # a factor for each image changes nothing


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=8), st.integers(0, 5), st.floats(0, 50))
def test_usage_is_a_distribution_without_zeros(counts: list[float], images: int, prior: float) -> None:
    classes = len(counts)
    centroids = np.eye(classes)[:2]
    seen = np.random.default_rng(images).random((images, classes))
    owner = Owner.of(seen, np.array(counts), centroids, settings(prior=prior))
    assert owner.usage.sum() == pytest.approx(1)
    assert (owner.usage > 0).all()
    assert 0 <= owner.cluster < 2


def test_an_image_between_two_classes_is_of_the_one_that_the_owner_meets() -> None:
    unsure = np.array([[0.45, 0.0, 0.55, 0.0], [0.0, 0.0, 0.001, 0.999], [0.9, 0.1, 0.0, 0.0]])
    assert remembering([50.0, 50.0, 0.0, 0.0]).meets(unsure).tolist() == [True, False, True]
    assert remembering([0.0, 0.0, 50.0, 0.0]).meets(unsure).tolist() == [True, True, False]


TOPICS = np.array([[0.5, 0.5, 0.0, 0.0, 0, 0], [0, 0, 0.5, 0.5, 0, 0], [0, 0, 0, 0, 0.5, 0.5]])


def test_an_owner_of_two_interests_will_meet_the_classes_of_both() -> None:
    """She was not yet seen with two of their classes; no single topic has them."""
    seen = np.eye(6)[[0] * 10 + [2] * 6]
    owner = Owner.of(seen, np.zeros(6), TOPICS, settings(max_classes=4, min_share=0.01, prior=4.0), mixed=True)
    assert owner.classes.tolist() == [0, 1, 2, 3]
    assert owner.cluster == 0


def test_topics_that_do_not_fit_the_owner_are_not_believed() -> None:
    wrong = TOPICS[:, [0, 2, 4, 1, 3, 5]]
    seen = np.eye(6)[[0, 1] * 10]
    right, misled = (Owner.of(seen, np.zeros(6), t, settings(prior=4.0), mixed=True).usage for t in (TOPICS, wrong))
    assert right[:2].sum() > 0.95
    assert misled[:2].sum() > 0.85


@pytest.mark.parametrize("images", [0, 1])
def test_without_images_to_compare_topics_with_the_fleet_is_believed_somewhat(images: int) -> None:
    owner = Owner.of(np.eye(6)[[0] * images], np.zeros(6), TOPICS, settings(prior=4.0), mixed=True)
    assert owner.usage.sum() == pytest.approx(1)
    assert owner.usage[1] >= owner.usage[3] >= owner.usage[5] - 1e-9


def test_how_many_classes_are_own_follows_the_network_unless_it_is_configured() -> None:
    def own(classes: int, **changes: float) -> int:
        counts = np.concatenate([np.full(classes // 2, 100.0), np.full(classes - classes // 2, 10.0)])
        return len(
            Owner.of(
                NOTHING[:, :0].reshape(0, classes), counts, np.zeros((0, classes)), Usage(prior=0.0, **changes)
            ).classes
        )

    assert [own(10), own(200)] == [5, 100]  # shares of 0.018 and 0.0009, less than 0.3 over the number of classes
    assert own(200, min_share=0.0005) == 160
    assert own(200, min_share=0.0005, max_classes=200) == 200
    assert own(200, min_share=0.03) == 1
