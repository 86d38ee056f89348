"""Filter clusters: alike filters together, layers apart, the same numbers for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from fedcaptor.common.filter_clusters import filter_clusters
from fedcaptor.common.groups import ChannelGroups, Group


def described(*channels: int) -> ChannelGroups:
    groups = [Group(f"g{i}", n, (), (f"g{i}",)) for i, n in enumerate(channels)]
    return ChannelGroups("any", (1, 1, 1), (*groups, Group("out", 3, (), ("out",), output=True)), (), {})


def test_alike_filters_share_a_cluster_whatever_their_scale() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.integers(0, 3, 40)
    rows = np.eye(3)[wanted] + rng.uniform(0, 0.05, (40, 3))
    found = filter_clusters(rows * rng.uniform(0.1, 10, (40, 1)), described(40), clusters_per_layer=3)
    assert found.dtype == np.int64
    for label in range(3):
        assert len(set(found[wanted == label])) == 1
    assert set(found) == {0, 1, 2}


def test_layers_never_share_a_cluster_and_numbers_have_no_gaps() -> None:
    rows = np.random.default_rng(1).dirichlet(np.ones(5), 60)
    found = filter_clusters(rows, described(20, 3, 37), clusters_per_layer=8, seed=4)
    layers = [set(found[:20]), set(found[20:23]), set(found[23:])]
    assert [len(layer) for layer in layers] == [8, 3, 8]
    assert set.union(*layers) == set(range(19))
    assert found[0] == 0
    np.testing.assert_array_equal(np.unique(found[:20]), np.arange(8))
    np.testing.assert_array_equal(found, filter_clusters(rows, described(20, 3, 37), clusters_per_layer=8, seed=4))


@pytest.mark.parametrize("seed", [0, 2**40, -1])
def test_any_seed_will_do(seed: int) -> None:
    rows = np.random.default_rng(1).dirichlet(np.ones(5), 12)
    assert filter_clusters(rows, described(12), clusters_per_layer=4, seed=seed).max() == 3


def test_identical_rows_need_one_cluster() -> None:
    rows = np.vstack([np.tile([0.2, 0.3, 0.5], (9, 1)), np.tile([0.4, 0.6, 1.0], (3, 1)), np.zeros((2, 3))])
    np.testing.assert_array_equal(filter_clusters(rows, described(12, 2)), [0] * 12 + [1, 1])
    np.testing.assert_array_equal(filter_clusters(rows, described(14)), [0] * 12 + [1, 1])


def test_one_cluster_a_layer() -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(3), 9)
    np.testing.assert_array_equal(filter_clusters(rows, described(4, 5), clusters_per_layer=1), [0] * 4 + [1] * 5)
    with pytest.raises(ValueError, match="at least 1"):
        filter_clusters(rows, described(4, 5), clusters_per_layer=0)
