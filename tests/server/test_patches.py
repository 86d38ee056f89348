"""Patches: the images and places that excite a filter most, as large as what it sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.trace import trace
from fedcaptor.server.patches import most_exciting

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    """Filter 0 looks for bright pixels, filter 1 for dark ones and is never excited; a second layer sees 17 × 17."""
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(2, 2, 17, padding=8), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3),
    )  # fmt: skip
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, -1]).view(2, 1, 1, 1))
        network[0].bias.zero_()
        network[2].weight.fill_(0.1)
    network.eval().requires_grad_(False)
    state = {key: tensor.numpy().copy() for key, tensor in network.state_dict().items()}
    return BaseModel("any", state, trace(network, "any", (1, 40, 30)), (0.0,), (1.0,), network)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Seventy images with one bright pixel each, brighter by number, the brightest in a corner."""
    x = np.zeros((70, 40, 30, 1), np.uint8)
    x[np.arange(70), 20, 10] = np.arange(10, 80)[:, None]
    x[69, 20, 10], x[69, 0, 29] = 0, 200
    return x


def test_the_brightest_come_first_and_in_the_middle(base: BaseModel, images: np.ndarray) -> None:
    first = base.groups.prunable[0].name
    seen: list[tuple[int, int]] = []
    found = most_exciting(base, {first: np.array([1, 0])}, images, 3, lambda done, total: seen.append((done, total)))
    patches = found[first]
    assert seen == [(64, 70), (70, 70)]
    assert patches.window == 1
    assert patches.crops.shape == (2, 3, 12, 12, 1)
    np.testing.assert_allclose(patches.strength[1] * 255, [200, 78, 77], rtol=1e-5)
    assert (patches.strength[0] == 0).all()
    assert patches.crops[1, :, :, :, 0].max((1, 2)).tolist() == [200, 78, 77]
    assert patches.crops[1, 0, 0, 11, 0] == 200  # the corner of the image is that of the crop
    assert patches.crops[1, 1, 6, 6, 0] == 78


def test_a_crop_is_what_a_place_sees_and_no_larger_than_the_image(base: BaseModel) -> None:
    images = np.random.default_rng(0).integers(1, 256, (5, 40, 30, 1), dtype=np.uint8)
    second = base.groups.prunable[1].name
    patches = most_exciting(base, {second: np.array([0])}, images, 2)[second]
    # Behind a global mean a filter sees the whole image, of which a square is cut.
    assert patches.window == 40
    assert patches.crops.shape == (1, 2, 30, 30, 1)


def test_fewer_images_than_asked_for(base: BaseModel, images: np.ndarray) -> None:
    first = base.groups.prunable[0].name
    assert most_exciting(base, {first: np.array([0])}, images[:2], 4)[first].crops.shape == (1, 2, 12, 12, 1)
    assert not any(m._forward_pre_hooks for m in base.module.modules())
