"""Derived groups of a sliced network are those that tracing it would find, and slicing twice is slicing once."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcaptor.common.groups import ChannelGroups, State
from fedcaptor.common.plan import Plan
from fedcaptor.common.slicer import slice_state
from fedcaptor.common.subgroups import composed, subgroups
from fedcaptor.common.torch_engine.network import network, state_of
from fedcaptor.common.torch_engine.registry import build, skeleton
from fedcaptor.common.torch_engine.trace import trace
from tests.common import own_networks

SHAPE = (3, 20, 24)
NETWORKS = [
    "small-cnn",
    *(f"{own_networks.__name__}:{f}" for f in ("plain", "concatenating", "dense", "depthwise_with_bias", "flat_norm")),
]

pytestmark = pytest.mark.usefixtures("one_thread")


@lru_cache
def traced(name: str) -> tuple[State, ChannelGroups]:
    module = build(name, 10, SHAPE)
    return state_of(module), trace(module, name, SHAPE)


def random_plan(groups: ChannelGroups, rng: np.random.Generator, share: float = 0.75) -> Plan:
    """At least two channels (one alone is no depthwise convolution) of a random part of the groups."""
    chosen = [group for group in groups.groups if rng.random() < share]
    return Plan.of(
        groups,
        {g.name: rng.choice(g.channels, rng.integers(min(2, g.channels), g.channels + 1), False) for g in chosen},
    )


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_slicing_twice_is_slicing_once(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    state, groups = traced(name)
    first = random_plan(groups, rng)
    smaller = subgroups(groups, first)
    second = random_plan(smaller, rng)
    at_once = composed(groups, first, second)
    twice = slice_state(slice_state(state, groups, first), smaller, second)
    once = slice_state(state, groups, at_once)
    assert list(twice) == list(once)
    for key in once:
        np.testing.assert_array_equal(twice[key], once[key])
    assert smaller.macs(second.counts()) == groups.macs(at_once.counts())
    assert smaller.parameters(second.counts()) == groups.parameters(at_once.counts())
    np.testing.assert_array_equal(first.classes(groups)[second.classes(smaller)], at_once.classes(groups))


@pytest.mark.parametrize("name", NETWORKS)
def test_derived_groups_are_those_of_tracing(name: str) -> None:
    state, groups = traced(name)
    plan = random_plan(groups, np.random.default_rng(3), share=1.0)
    module = network(skeleton(name, 10, SHAPE), slice_state(state, groups, plan))
    assert subgroups(groups, plan) == trace(module, name, SHAPE)


def test_a_plan_that_removes_nothing_changes_nothing() -> None:
    _, groups = traced("small-cnn")
    assert subgroups(groups, Plan.of(groups, {})).digest == groups.digest
