"""Rankings of filters as pruning curves: by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcaptor.common.groups import ChannelGroups, Consumer, Group, TensorSlice
from fedcaptor.common.ranking import by_class_preference, for_classes, ranked, shares, weight_norms


def described(*channels: int) -> ChannelGroups:
    groups = [
        Group(f"g{i}", n, (TensorSlice(f"g{i}.weight", 0),), (f"g{i}",), (Consumer("next"),))
        for i, n in enumerate(channels)
    ]
    return ChannelGroups("any", (1, 1, 1), (*groups, Group("out", 3, (), ("out",), output=True)), (), {})


def test_a_removal_costs_its_share_of_what_is_left():
    curve = ranked(described(4), {"g0": np.array([4.0, 1.0, 3.0, 2.0])})["g0"]
    np.testing.assert_array_equal(curve.order, [1, 3, 2, 0])
    np.testing.assert_allclose(curve.cost, [1 / 10, 2 / 9, 3 / 7, 1])


def test_scores_of_zero_cost_nothing():
    curve = shares(np.array([0.0, 0.0]), np.array([1, 0]))
    np.testing.assert_array_equal(curve.cost, [0, 0])


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_the_scale_of_a_layers_scores_does_not_matter_and_costs_grow(scores, scale):
    score = np.array(scores, float)
    one, other = (ranked(described(len(scores)), {"g0": s})["g0"] for s in (score, score * scale))
    np.testing.assert_array_equal(one.order, other.order)
    np.testing.assert_allclose(one.cost, other.cost, rtol=1e-9)
    assert (np.diff(one.cost) >= -1e-12).all()


def test_norms_of_all_producers_add_up():
    place = TensorSlice("b.weight", 0, offset=1)
    group = Group(
        "sum", 2, (TensorSlice("a.weight", 0), place, TensorSlice("c.weight", 1)), ("a", "b"), (Consumer("c"),)
    )
    groups = ChannelGroups("any", (1, 1, 1), (group, Group("out", 3, (), ("c",), output=True)), (), {})
    state = {
        "a.weight": np.array([[1.0, -2.0], [0.0, 1.0]]).reshape(2, 2, 1, 1),
        "b.weight": np.array([[100.0], [-10.0], [20.0]]).reshape(3, 1, 1, 1),
        "c.weight": np.ones((1, 2, 1, 1)),
    }
    np.testing.assert_allclose(weight_norms(groups, state)["sum"], [3 + 10, 1 + 20])


def test_each_needed_class_has_the_same_say():
    scores = {"g0": np.array([[10.0, 1.0, 7.0], [0.0, 3.0, 7.0]])}
    found = for_classes(scores, np.array([10, 1, 5]), np.array([0, 1]))
    np.testing.assert_allclose(found["g0"], [1 + 1, 3])
    np.testing.assert_allclose(for_classes(scores, np.array([0, 1, 5]), np.array([1]))["g0"], [1, 3])


@pytest.mark.parametrize(("needed", "first"), [([0], {1, 3, 5}), ([1], {0, 2, 4})])
def test_clusters_that_prefer_unneeded_classes_go_first_and_whole(needed, first):
    # Even filters want class 0, odd ones class 1; the weakest filter of either is last in its numbering.
    strength = np.array([9.0, 8, 7, 6, 5, 4])
    score = np.where(np.arange(6)[:, None] % 2 == [0, 1, 2], strength[:, None], 0.1 * strength[:, None])
    curve = by_class_preference(
        described(6), {"g0": score}, np.array([1, 1, 1]), np.array(needed), clusters_per_layer=2
    )["g0"]
    assert set(curve.order[:3]) == first
    for part in (curve.order[:3], curve.order[3:]):
        np.testing.assert_array_equal(part, np.sort(part)[::-1])  # weakest first inside a cluster


def test_a_strong_filter_of_an_unneeded_cluster_goes_before_a_weak_one_of_a_needed_cluster():
    score = np.array([[5.0, 90.0, 0.0], [4.0, 80.0, 0.0], [1.0, 0.01, 0.0], [2.0, 0.02, 0.0]])
    arguments = described(4), {"g0": score}, np.array([1, 1, 1]), np.array([0])
    np.testing.assert_array_equal(by_class_preference(*arguments, clusters_per_layer=2)["g0"].order, [1, 0, 2, 3])
    np.testing.assert_array_equal(by_class_preference(*arguments, clusters_per_layer=1)["g0"].order, [2, 3, 1, 0])
