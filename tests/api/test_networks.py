"""Networks of torchvision, pruned by `fedcaptor.prune`: smaller, and equal to the full one that reads zeros instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

import fedcaptor
from fedcaptor.common.plan import Plan
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.latency import measure_table
from fedcaptor.common.torch_engine.network import network
from fedcaptor.common.torch_engine.verify import hidden_outputs
from tests.common import own_networks
from tests.common.test_slicing import random_state

pytestmark = pytest.mark.usefixtures("one_thread")

LARGE = ("vgg16", "densenet121", "alexnet")
QUICK = ("mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1")
NETWORKS = {
    "alexnet": 0.3,
    "convnext_tiny": 0.3,
    "densenet121": 0.3,
    "efficientnet_b0": 0.3,
    "mobilenet_v2": 0.3,
    "mobilenet_v3_small": 0.3,
    "regnet_x_400mf": 0.4,
    "regnet_y_400mf": 0.3,
    "resnet18": 0.3,
    "resnet50": 0.3,
    "shufflenet_v2_x0_5": 0.5,
    "shufflenet_v2_x1_0": 0.5,
    "squeezenet1_1": 0.3,
    "vgg16": 0.3,
}
CLASSES = [1, 4]
ENGINE = Path(__file__).parents[2] / "docs" / "engine.md"


def built(name: str) -> nn.Module:
    """The network for five classes, with random weights of which none is close to zero."""
    module = getattr(models, name)(weights=None, num_classes=5)
    return network(module, random_state(module, np.random.default_rng(0)))


def images(name: str, count: int) -> torch.Tensor:
    side = 64 if name in ("alexnet", "squeezenet1_1") else 32
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.long if name in LARGE else pytest.mark.slow)
        for name in NETWORKS
    ],
)
def test_a_torchvision_network_is_pruned_saved_and_loaded(name: str, tmp_path: Path) -> None:
    full, x = built(name), images(name, 4)
    small = fedcaptor.prune(full, x, CLASSES, macs=NETWORKS[name], strategy="l1")
    assert small.macs_ratio <= NETWORKS[name]
    groups = fedcaptor.inspect(full, small.input_shape).groups
    smallest = groups.macs_ratio({group.name: group.smallest(8) for group in groups.prunable})
    assert f"| `{name}` | {smallest:.0%} |" in ENGINE.read_text()
    assert small.parameters < 0.8 * sum(tensor.numel() for tensor in full.state_dict().values() if tensor.ndim)
    with torch.no_grad():
        expected = hidden_outputs(full, groups, Plan.of(groups, small.kept), x)
        found = small.module(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    again = fedcaptor.load(small.save(tmp_path / "small.safetensors"), full)
    np.testing.assert_allclose(again.scores(x), found.numpy(), rtol=0, atol=0.02 * float(expected.abs().max()))


@pytest.mark.parametrize("factory", [own_networks.grouped_twice, own_networks.inverted, own_networks.halved])
def test_reconstruction_serves_groups_of_convolutions_and_channels_that_are_last(
    factory: Callable[[int, tuple[int, int, int]], nn.Module],
) -> None:
    module = factory(5, (3, 16, 12))
    full = network(module, random_state(module, np.random.default_rng(0)))
    x = torch.randn(200, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    wanted = full(x)[:, CLASSES]
    error = {}
    for strategy in ("reconstruct", "l1"):
        small = fedcaptor.prune(full, x, CLASSES, macs=0.75, multiple=2, strategy=strategy)
        error[strategy] = float((small.module(x) - wanted).abs().mean())
    assert error["reconstruct"] < error["l1"] / 2
    tuned = fedcaptor.prune(full, x, CLASSES, macs=0.75, multiple=2, tune=3)
    assert tuned.measured["agreement_after_tuning"] >= tuned.measured["agreement_before_tuning"]


def test_latency_of_grouped_layers_is_measured() -> None:
    module = own_networks.grouped_twice(5, (3, 16, 12))
    base = BaseModel.of(module, "own", (3, 16, 12), (0.0,) * 3, (1.0,) * 3)
    table = measure_table(base, 2)
    assert table.layers["three"].outputs == (6, 12, 18)  # a third of it, two, all
    assert table.layers["three"].inputs == (1,)


def test_a_step_of_a_group_keeps_multiples_of_channels() -> None:
    groups = BaseModel.of(own_networks.grouped_twice(5, (3, 16, 12)), "own", (3, 16, 12), (0.0,) * 3, (1.0,) * 3).groups
    one = groups.by_name["one"]
    assert (one.channels, one.width, one.producers) == (3, 4, ("one", "three", "six", "gate"))
    assert [one.step(multiple) for multiple in (1, 2, 4, 8, 6)] == [1, 1, 1, 2, 3]
