"""Class-wise Taylor scores: by hand, against numerical derivatives, and against closing filters one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional

from fedcaptor.common.data.source import load
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.models import ConvNet
from fedcaptor.common.torch_engine.registry import build
from fedcaptor.common.torch_engine.scores import ClassScores, normalised, taylor_scores
from fedcaptor.common.torch_engine.trace import trace
from tests.common import own_networks
from tests.common.own_networks import Own

pytestmark = pytest.mark.usefixtures("one_thread")


def fill(layer: nn.Module, values: list[float]) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(values).view_as(layer.weight))
        if layer.bias is not None:
            layer.bias.zero_()


def test_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 2)).eval()
    fill(network[0], [1, 2])
    fill(network[3], [1, -1, 0, 1, 0, 0, 0, 0])
    groups = trace(network, "hand", (1, 1, 2))
    x = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    # Channels (1, 2) and (2, 4); the first adds 1 - 2 to logit 0, the second 4. Logits (3, 0): ∂L/∂z₀ = -1 / (1 + e³).
    found = taylor_scores(network, groups, torch.cat([x, x]), np.array([0, 0]))
    slope = 1 / (1 + math.exp(3))
    np.testing.assert_allclose(found.scores["0"], [[2 * slope * 1, 0], [2 * slope * 4, 0]], rtol=1e-5)
    np.testing.assert_array_equal(found.presence, [2, 0])
    np.testing.assert_allclose(normalised(found), [[1 / 17**0.5, 0], [4 / 17**0.5, 0]], rtol=1e-5)


def test_signed_effects_through_several_readers_add_up() -> None:
    network = Own(
        lambda m, x: m.head((m.left(y := torch.relu(m.one(x))) + m.right(y)).mean((2, 3))),
        one=nn.Conv2d(1, 2, 1),
        left=nn.Conv2d(2, 1, 1),
        right=nn.Conv2d(2, 1, 1),
        head=nn.Linear(1, 2),
    ).eval()
    fill(network.one, [1, 1])
    fill(network.left, [1, 1])
    fill(network.right, [-1, 2])
    fill(network.head, [1, 0])
    groups = trace(network, "hand", (1, 2, 2))
    found = taylor_scores(network, groups, torch.ones(1, 1, 2, 2), np.array([0]))
    slope = 1 / (1 + math.exp(3))
    np.testing.assert_allclose(found.scores["one"][:, 0], [0, 3 * slope], rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["plain", "concatenating", "dense", "depthwise_with_bias", "gated", "all_convolutional", "flat_norm"]
)
def test_scores_are_derivatives_of_the_loss(name: str) -> None:
    torch.manual_seed(1)
    shape = (3, 8, 8)
    network = getattr(own_networks, name)(4, shape).eval()
    groups = trace(network, name, shape)
    network.double()
    x, labels = torch.randn(1, *shape, dtype=torch.float64), np.array([2])
    found = taylor_scores(network, groups, x, labels)
    modules, step = dict(network.named_modules()), 1e-5
    for group in groups.prunable:
        numeric = np.empty(group.channels)
        for channel in range(group.channels):
            losses = []
            for factor in (1 + step, (1 - step) / (1 + step), 1 / (1 - step)):
                for c in group.consumers:
                    start = c.offset + channel * c.taps
                    with torch.no_grad():
                        modules[c.layer].weight[:, start : start + c.taps] *= factor
                losses.append(functional.cross_entropy(network(x), torch.tensor(labels)).item())
            numeric[channel] = abs(losses[0] - losses[1]) / (2 * step)
        np.testing.assert_allclose(found.scores[group.name][:, 2], numeric, rtol=1e-3, atol=1e-6)


def small(name: str = "small-cnn") -> tuple[nn.Module, ChannelGroups, torch.Tensor, np.ndarray]:
    torch.manual_seed(0)
    network = build(name, 4, (1, 16, 16))
    x = torch.randn(11, 1, 16, 16)
    return network, trace(network, name, (1, 16, 16)), x, logits(network.requires_grad_(False), x).argmax(1)


@pytest.mark.parametrize("name", ["small-cnn", "resnet20"])
def test_batches_and_parts_add_up_and_the_model_stays(name: str) -> None:
    network, groups, x, labels = small(name)
    before = logits(network, x)
    network.requires_grad_(True)
    whole = taylor_scores(network, groups, x, labels, batch=32)
    with torch.no_grad():
        parts = taylor_scores(network, groups, x[:4], labels[:4], 3) + taylor_scores(
            network, groups, x[4:], torch.tensor(labels[4:]), 5
        )
    np.testing.assert_array_equal(whole.presence, parts.presence)
    assert list(whole.scores) == [g.name for g in groups.prunable]
    for group in groups.prunable:
        score = whole.scores[group.name]
        assert score.shape == (group.channels, 4)
        assert score.dtype == np.float32
        np.testing.assert_allclose(score, parts.scores[group.name], rtol=1e-3, atol=1e-5 * score.max())
        assert not score[:, whole.presence == 0].any()
    assert all(p.grad is None for p in network.parameters())
    np.testing.assert_array_equal(logits(network.requires_grad_(False), x), before)


def test_no_images_give_zeros() -> None:
    network, groups, x, labels = small()
    none = taylor_scores(network, groups, x[:0], labels[:0])
    assert not none.presence.any()
    assert not normalised(none).any()
    one = taylor_scores(network, groups, x[:1], labels[:1])
    np.testing.assert_array_equal(normalised(one + none), normalised(one))


def test_scores_of_different_networks_do_not_add() -> None:
    with pytest.raises(ValueError, match="different networks"):
        ClassScores({"a": np.ones((1, 1), np.float32)}, np.ones(1, np.int64)) + ClassScores({}, np.ones(1, np.int64))


def test_a_very_sure_prediction_still_has_scores() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 2)).eval()
    fill(network[0], [1, 2])
    fill(network[2], [10, 10, 0, 0])
    groups = trace(network, "hand", (1, 1, 1))
    found = normalised(taylor_scores(network, groups, torch.ones(1, 1, 1, 1), np.array([0])))
    np.testing.assert_allclose(found[:, 0], [1 / 5**0.5, 2 / 5**0.5], rtol=1e-4)


@pytest.mark.slow
def test_scores_rank_filters_as_closing_them_does() -> None:
    data = load("embedded")
    chosen = data.y < 4
    x = normalise(data.x[chosen][:1024].reshape(-1, 28, 28, 1), (0.29,), (0.35,))
    y = torch.from_numpy(data.y[chosen][:1024])
    torch.manual_seed(0)
    network = ConvNet((16, "M", 24, "M", 24), 1, 32, 4).train()
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(96):
        part = slice(step % 16 * 64, step % 16 * 64 + 64)
        optimiser.zero_grad()
        functional.cross_entropy(network(x[part]), y[part]).backward()
        optimiser.step()
    network.eval().requires_grad_(False)
    groups = trace(network, "trained", (1, 28, 28))
    x = x[:256]
    labels = torch.from_numpy(logits(network, x).argmax(1))
    found = taylor_scores(network, groups, x, labels)
    modules = dict(network.named_modules())
    reference = functional.cross_entropy(network(x), labels, reduction="none")
    for group in groups.prunable:
        (consumer,) = group.consumers
        weight = modules[consumer.layer].weight
        closed = np.zeros((group.channels, 4))
        for channel in range(group.channels):
            kept = weight[:, channel].clone()
            weight[:, channel] = 0
            change = (functional.cross_entropy(network(x), labels, reduction="none") - reference).abs()
            weight[:, channel] = kept
            closed[channel] = torch.zeros(4).index_add_(0, labels, change).numpy()
        assert spearmanr(closed.ravel(), found.scores[group.name].ravel()).statistic > 0.6, group.name
