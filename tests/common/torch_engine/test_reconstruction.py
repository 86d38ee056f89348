"""Kept channels absorb removed ones: exactly, where these depend linearly on them."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedcaptor.common.observations import Sampler
from fedcaptor.common.plan import Plan
from fedcaptor.common.slicer import slice_state
from fedcaptor.common.torch_engine.evidence import responses
from fedcaptor.common.torch_engine.network import network, state_of
from fedcaptor.common.torch_engine.reconstruction import reconstruct_weights
from fedcaptor.common.torch_engine.registry import build, skeleton
from fedcaptor.common.torch_engine.trace import trace
from tests.common import own_networks
from tests.common.test_slicing import random_state

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, CLASSES = (3, 16, 16), 4


def reconstruction_errors(name: str, redundant: bool) -> tuple[float, float]:
    """Relative error of the outputs after cutting half of the channels, plain and reconstructed. With `redundant` the
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
            for cut in (c for c in group.slices if c.dim == 0):
                rows = state[cut.tensor][cut.offset : cut.offset + group.channels * cut.taps]
                rows[-half * cut.taps :] = rows[: half * cut.taps]
    module = network(module, state)
    plan = Plan.of(groups, kept)
    x = torch.from_numpy(rng.standard_normal((48, *SHAPE)).astype(np.float32))
    cut = network(skeleton(f"{own_networks.__name__}:{name}", CLASSES, SHAPE), slice_state(state, groups, plan))
    with torch.no_grad():
        before, sampler = cut(x), Sampler(len(x), 4096, 0)
        with responses(module, groups, sampler) as full:
            expected = module(x)
        reconstruct_weights(cut, groups, plan, x, full, ridge=1e-3)
        after = cut(x)
    scale = expected.std()
    return float((before - expected).std() / scale), float((after - expected).std() / scale)


@pytest.mark.parametrize("name", ["plain", "concatenating", "dense", "all_convolutional"])
def test_copies_of_kept_channels_are_absorbed_without_loss(name):
    plain, reconstructed = reconstruction_errors(name, redundant=True)
    assert plain > 0.05
    assert reconstructed < 1e-3


@pytest.mark.parametrize("name", ["concatenating", "dense"])
def test_a_layer_behind_a_concatenation_is_reconstructed_for_each_group_that_it_reads(name):
    plain, reconstructed = reconstruction_errors(name, redundant=False)
    assert reconstructed < 0.8 * plain


@pytest.mark.parametrize(("rectifier", "bias"), [(nn.ReLU(), -1.0), (nn.ReLU6(), 7.0)])
@torch.no_grad()
def test_what_a_rectifier_hides_need_not_be_right(rectifier: nn.Module, bias: float) -> None:
    """Half of the outputs lie beyond its end: a fit that knows it comes nearer behind it than one that does not."""
    generator = torch.Generator().manual_seed(5)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6), rectifier, nn.Flatten()
    )
    module.append(nn.Linear(6 * 144, 3)).eval()
    for tensor in module.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    module[3].bias.fill_(bias)
    groups = trace(module, "own", SHAPE)
    (group,) = [group for group in groups.prunable if group.name == "0"]
    (consumer,) = group.consumers
    assert consumer.rectified == (6.0 if isinstance(rectifier, nn.ReLU6) else math.inf)
    unaware = replace(group, consumers=(replace(consumer, rectified=None),))
    x, plan = torch.randn(40, *SHAPE, generator=generator), Plan.of(groups, {"0": np.arange(4)})
    with responses(module, groups, Sampler(len(x))) as full:
        expected = module[:5](x)
    errors = []
    for known in (groups, replace(groups, groups=tuple(unaware if g is group else g for g in groups.groups))):
        cut = copy.deepcopy(module)
        cut[0] = nn.Conv2d(3, 4, 3)
        cut[2] = nn.Conv2d(4, 6, 3, bias=False)
        state = state_of(module)
        network(cut, slice_state(state, groups, plan))
        reconstruct_weights(cut, known, plan, x, full)
        errors.append(float((cut[:5](x) - expected).square().mean()))
    assert errors[0] < 0.98 * errors[1]
