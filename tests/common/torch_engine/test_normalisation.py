"""Images that are normalised otherwise than in training are told from the network's first batch norm."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from fedcaptor.common.assets import asset
from fedcaptor.common.data.source import load
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.normalisation import mismatch

WEIGHTS = asset("simulations/models/small_cnn_fashion.safetensors")
DATA = load("embedded")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return BaseModel.load(Path(WEIGHTS), "small-cnn", (1, 28, 28))


@pytest.mark.parametrize("label", range(10))
def test_images_of_any_class_pass_and_others_are_told(base, label):
    images = DATA.x[label == DATA.y][:40]
    assert mismatch(base, images) is None
    supposed = dataclasses.replace(base, mean=(0.5,), std=(0.5,))
    assert "times the deviation of training" in mismatch(supposed, images)
    assert mismatch(base, images.astype(np.float32) / 255) is not None


def test_what_tells_nothing_is_passed(base):
    black = np.zeros((20, 28, 28, 1), np.uint8)
    plain = dataclasses.replace(base, module=nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    untrained = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(784, 10)).eval()
    assert mismatch(base, black) is not None
    assert mismatch(plain, black) is None
    assert mismatch(dataclasses.replace(base, module=untrained), black) is None
    assert mismatch(base, black[:1]) is None
