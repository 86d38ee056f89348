"""Networks of torchvision, pruned by `fedcaptor.prune`: smaller, and equal to the full one that reads zeros instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

import fedcaptor
from fedcaptor.common.torch_engine.network import network
from fedcaptor.common.torch_engine.verify import hidden_outputs
from tests.common.test_slicing import random_state

pytestmark = pytest.mark.usefixtures("one_thread")

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


def built(name: str) -> nn.Module:
    """The network for five classes, with random weights of which none is close to zero."""
    module = getattr(models, name)(weights=None, num_classes=5)
    return network(module, random_state(module, np.random.default_rng(0)))


def images(name: str, count: int) -> torch.Tensor:
    side = 64 if name in ("alexnet", "squeezenet1_1") else 32
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_a_torchvision_network_is_pruned_saved_and_loaded(name: str, tmp_path: Path) -> None:
    full, x = built(name), images(name, 4)
    small = fedcaptor.prune(full, x, CLASSES, macs=NETWORKS[name], strategy="l1")
    assert small._pruned is not None
    assert small.macs_ratio <= NETWORKS[name]
    assert small.parameters < 0.8 * sum(tensor.numel() for tensor in full.state_dict().values() if tensor.ndim)
    with torch.no_grad():
        expected = hidden_outputs(full, small._pruned.base.groups, small._pruned.plan, x)
        found = small.module(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    again = fedcaptor.load(small.save(tmp_path / "small.safetensors"), full)
    np.testing.assert_allclose(again.scores(x), found.numpy(), rtol=0, atol=0.02 * float(expected.abs().max()))
