"""Recalibrated batch norms hold the statistics of what the cut network shows, layer after layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedcaptor.common.errors import DataError
from fedcaptor.common.plan import Plan
from fedcaptor.common.torch_engine.base import Submodel
from fedcaptor.common.torch_engine.factory import sliced
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.torch_engine.recalibrate import batch_norms, recalibrate
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def submodel(bars) -> Submodel:
    base = tiny.base_model(bars[1])
    first = base.groups.prunable[0]
    return sliced(base, Plan.of(base.groups, {first.name: np.arange(1, first.channels, 2)}))


def test_statistics_are_exact_and_the_input_stays(submodel):
    images, _ = tiny.images(40, 5)
    before = {key: tensor.clone() for key, tensor in submodel.module.state_dict().items()}
    found = recalibrate(submodel, images)
    maps = submodel.module[0](normalise(images, submodel.base.mean, submodel.base.std))
    norm = found.module[1]
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, maps.var((0, 2, 3)))
    assert found.plan is submodel.plan
    assert not found.module.training
    assert not norm.training
    assert norm.momentum == submodel.module[1].momentum
    for key, tensor in submodel.module.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_later_layers_are_measured_behind_recalibrated_ones(bars):
    base = tiny.base_model(bars[1])
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.ReLU(), torch.nn.Conv2d(3, 2, 3),
        torch.nn.BatchNorm2d(2), torch.nn.Dropout(0.9),
    ).requires_grad_(False).eval()  # fmt: skip
    images, _ = tiny.images(30, 6)
    found = recalibrate(Submodel(base, Plan.of(base.groups, {}), module), images).module
    x = normalise(images, base.mean, base.std)
    maps = module[3](torch.nn.functional.batch_norm(module[0](x), None, None, training=True).relu())
    torch.testing.assert_close(found[4].running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[4].running_var, maps.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    means = found(x).mean((0, 2, 3))
    torch.testing.assert_close(means, torch.zeros(2), rtol=0, atol=1e-3)


def test_batches_of_one_size_are_averaged(submodel):
    images, _ = tiny.images(60, 7)
    whole, parts = recalibrate(submodel, images), recalibrate(submodel, images, batch=20)
    torch.testing.assert_close(whole.module[1].running_mean, parts.module[1].running_mean)
    assert not torch.equal(whole.module[1].running_var, parts.module[1].running_var)
    torch.testing.assert_close(whole.module[1].running_var, parts.module[1].running_var, rtol=0.05, atol=0)


def test_norms_without_statistics_are_left_out():
    assert not batch_norms(torch.nn.BatchNorm2d(3, track_running_stats=False))


def test_one_image_has_no_variance(submodel):
    with pytest.raises(DataError, match="1 images to recalibrate on, at least 2"):
        recalibrate(submodel, tiny.images(1, 0)[0])
