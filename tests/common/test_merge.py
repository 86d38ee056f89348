"""Kept channels absorb removed ones: exactly, where these depend linearly on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.plan import Plan
from common.slicer import slice_state
from common.torch_engine.evidence import Sampler, recorded
from common.torch_engine.merge import merge
from common.torch_engine.network import network
from common.torch_engine.registry import build, skeleton
from common.torch_engine.trace import trace
from tests.common import own_networks
from tests.common.test_slicing import random_state

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, CLASSES = (3, 16, 16), 4


def merged_error(name: str, redundant: bool) -> tuple[float, float]:
    """Relative error of the outputs after cutting half of the channels, plain and merged. With `redundant` the
    second half of every group's filters is a copy of the first.
    """
    rng = np.random.default_rng(3)
    module = build(f"{own_networks.__name__}:{name}", CLASSES, SHAPE)
    state = random_state(module, rng)
    module = network(module, state)
    groups = trace(module, name, SHAPE)
    kept = {g.name: np.arange(-(-g.channels // 2)) for g in groups.prunable if g.channels > 1}
    if redundant:
        for group in groups.prunable:
            half = group.channels // 2
            for cut in (c for c in group.cuts if c.dim == 0):
                rows = state[cut.tensor][cut.offset : cut.offset + group.channels * cut.taps]
                rows[-half * cut.taps :] = rows[: half * cut.taps]
    module = network(module, state)
    plan = Plan.of(groups, kept)
    x = torch.from_numpy(rng.standard_normal((48, *SHAPE)).astype(np.float32))
    cut = network(skeleton(f"{own_networks.__name__}:{name}", CLASSES, SHAPE), slice_state(state, groups, plan))
    with torch.no_grad():
        before, sampler = cut(x), Sampler(len(x), 4096, 0)
        with recorded(module, groups, sampler) as rows:
            expected = module(x)
        merge(cut, state, groups, plan, x, rows, sampler, ridge=1e-9)
        after = cut(x)
    scale = expected.std()
    return float((before - expected).std() / scale), float((after - expected).std() / scale)


@pytest.mark.parametrize("name", ["plain", "concatenating", "dense", "all_convolutional"])
def test_copies_of_kept_channels_are_absorbed_without_loss(name):
    plain, merged = merged_error(name, redundant=True)
    assert plain > 0.05
    assert merged < 1e-3


@pytest.mark.parametrize("name", ["concatenating", "dense"])
def test_a_layer_behind_a_concatenation_is_merged_for_each_group_that_it_reads(name):
    plain, merged = merged_error(name, redundant=False)
    assert merged < 0.8 * plain
