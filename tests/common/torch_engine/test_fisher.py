"""The Fisher form by hand, and its limits: the Gauss-Newton form when hot, errors between likely classes when cold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fedcaptor.common.torch_engine.evidence import output_sensitivity
from fedcaptor.common.torch_engine.fisher import fisher_sensitivity
from fedcaptor.common.torch_engine.trace import trace

pytestmark = pytest.mark.usefixtures("one_thread")
REPEATS = 4000


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Logits (2, 0, -5, 0) for an image of one pixel that is 1."""
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(2, 4, bias=False)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 1.0]).view(2, 1, 1, 1))
        network[2].weight.copy_(torch.tensor([[1.0, 1], [0, 0], [-5, 0], [0, 0]]))
    return network.requires_grad_(False)


def found(network: nn.Module, classes: list[int], temperature: float) -> np.ndarray:
    groups = trace(network, "hand", (1, 1, 1))
    x = torch.ones(REPEATS, 1, 1, 1)
    return fisher_sensitivity(network, groups, np.array(classes), x, temperature=temperature)["2"]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_two_classes_by_hand(network: nn.Module, temperature: float) -> None:
    p = 1 / (1 + math.exp(-2 / temperature))
    # E[(e_y - p)(e_y - p)ᵀ] of two classes is p(1-p) [[1, -1], [-1, 1]]; logits are the layer's outputs over T.
    expected = np.zeros((4, 4))
    expected[:2, :2] = p * (1 - p) / temperature**2 * np.array([[1, -1], [-1, 1]])
    # 4,000 draws of values of about 0.1 to 0.6: five standard errors are under 15 % of the expectation.
    np.testing.assert_allclose(found(network, [0, 1], temperature), expected, rtol=0.15, atol=1e-6)


def test_hot_it_is_a_multiple_of_the_gauss_newton_form(network: nn.Module) -> None:
    groups, x = trace(network, "hand", (1, 1, 1)), torch.ones(REPEATS, 1, 1, 1)
    wanted = output_sensitivity(network, groups, np.array([0, 1, 2]), x)["2"]
    hot = found(network, [0, 1, 2], 1000.0) * 3 * 1000.0**2  # uniform p: diag(1/k) - 1/k², over T²
    np.testing.assert_allclose(hot, wanted, atol=0.1)
    np.testing.assert_allclose(np.diag(hot), [2 / 3, 2 / 3, 2 / 3, 0], atol=0.06)


def test_cold_an_unlikely_class_counts_little(network: nn.Module) -> None:
    cold = np.diag(found(network, [0, 1, 2], 1.0))
    assert cold[2] < 0.1 * cold[1]
