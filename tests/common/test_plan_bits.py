"""Plans as packed bits."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedcaptor.common.plan_bits import pack_plan, unpack_plan
from tests.common.statistics.test_statistics import groups_of


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 10), st.integers(0, 10**6))
def test_a_packed_plan_is_one_size_and_comes_back(channels: list[int], classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = groups_of(channels, classes)
    kept = {
        g.name: np.sort(rng.choice(g.channels, rng.integers(1, g.channels + 1), replace=False))
        for g in groups.groups
        if rng.random() < 0.8
    }
    packed = pack_plan(kept, groups)
    assert packed.nbytes == -(-(sum(channels) + classes) // 8)
    found = unpack_plan(packed, groups)
    for group in groups.groups:
        np.testing.assert_array_equal(found[group.name], kept.get(group.name, np.arange(group.channels)))
