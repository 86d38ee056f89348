"""Gradient scores by hand, against numerical derivatives, and added over batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedcaptor.common.torch_engine.gradients import SCORES
from fedcaptor.common.torch_engine.registry import build
from fedcaptor.common.torch_engine.trace import trace
from tests.common import own_networks

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (3, 8, 8)


def test_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
        network[3].weight.copy_(torch.tensor([[1.0, -1, 0, 1], [0, 0, 0, 0]]))
        network[3].bias.zero_()
    groups = trace(network, "hand", (1, 1, 2))
    x = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    # Maps (1, 2) and (2, 4) add 1 - 2 and 4 to logit 0; logits (3, 0): ∂L/∂z₀ = -1 / (1 + e³) for label 0.
    slope = 1 / (1 + math.exp(3))
    expected = {
        "taylor": [1, 4],
        "signed-taylor": [-1, 4],
        "map-gradient": [2, 1],
        "weight-gradient": [1, 2],  # ∂z₀/∂w: 1·1 - 1·2 and 0·1 + 1·2
    }
    assert set(expected) == set(SCORES)
    for name, score in expected.items():
        found = SCORES[name](network, groups, torch.cat([x, x]), np.array([0, 0]))
        np.testing.assert_allclose(found.scores["0"], 2 * slope * np.array([score, [0, 0]]).T, rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(found.presence, [2, 0])


@pytest.mark.parametrize("name", ["plain", "concatenating", "dense", "all_convolutional", "flat_norm"])
def test_signed_scores_are_derivatives_and_their_size_is_taylor(name: str) -> None:
    torch.manual_seed(1)
    network = getattr(own_networks, name)(4, SHAPE).eval()
    groups = trace(network, name, SHAPE)
    network.double()
    x, labels = torch.randn(1, *SHAPE, dtype=torch.float64), np.array([2])
    signed, size = (SCORES[score](network, groups, x, labels).scores for score in ("signed-taylor", "taylor"))
    modules, step = dict(network.named_modules()), 1e-5
    for group in groups.prunable:
        np.testing.assert_allclose(np.abs(signed[group.name]), size[group.name], rtol=1e-4, atol=1e-9)
        losses = []
        for factor in (1 - step, (1 + step) / (1 - step), 1 / (1 + step)):
            for c in group.consumers:
                with torch.no_grad():
                    modules[c.layer].weight[:, c.offset : c.offset + c.taps] *= factor
            losses.append(functional.cross_entropy(network(x), torch.tensor(labels)).item())
        numeric = (losses[0] - losses[1]) / (2 * step)
        np.testing.assert_allclose(signed[group.name][0, 2], numeric, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["concatenating", "gated"])
def test_weight_scores_are_derivatives(name: str) -> None:
    torch.manual_seed(2)
    network = getattr(own_networks, name)(4, SHAPE).eval()
    groups = trace(network, name, SHAPE)
    network.double()
    x, labels, step = torch.randn(1, *SHAPE, dtype=torch.float64), np.array([3]), 1e-5
    found = SCORES["weight-gradient"](network, groups, x, labels).scores
    group = groups.prunable[0]
    numeric = 0.0
    for layer in group.producers:
        weight = dict(network.named_modules())[layer].weight
        for place in np.ndindex(*weight.shape[1:]):
            losses = []
            for change in (step, -2 * step, step):
                with torch.no_grad():
                    weight[(0, *place)] += change
                losses.append(functional.cross_entropy(network(x), torch.tensor(labels)).item())
            numeric += abs(losses[0] - losses[1]) / (2 * step)
    np.testing.assert_allclose(found[group.name][0, 3], numeric, rtol=1e-4)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", ["small-cnn", "resnet20"])
def test_parts_add_up_and_the_model_stays(name: str, score: str) -> None:
    torch.manual_seed(0)
    network = build(name, 4, (1, 16, 16)).requires_grad_(False)
    groups, x, labels = trace(network, name, (1, 16, 16)), torch.randn(5, 1, 16, 16), np.array([0, 3, 3, 1, 0])
    before = network(x)
    whole = SCORES[score](network, groups, x, labels)
    parts = SCORES[score](network, groups, x[:2], labels[:2]) + SCORES[score](network, groups, x[2:], labels[2:])
    np.testing.assert_array_equal(whole.presence, [2, 1, 0, 2])
    assert list(whole.scores) == [group.name for group in groups.prunable]
    for group, both in parts.scores.items():
        largest = np.abs(both).max()
        assert largest > 0
        assert not both[:, 2].any()
        np.testing.assert_allclose(whole.scores[group], both, rtol=1e-3, atol=1e-4 * largest)
    assert not any(p.requires_grad for p in network.parameters())
    torch.testing.assert_close(network(x), before, rtol=0, atol=0)
