"""Pruning curves in the unit of what really happens to the needed logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedcaptor.common.assets import asset
from fedcaptor.common.data.source import load
from fedcaptor.common.observations import KEPT, POWER, Rows, Sampler
from fedcaptor.common.selection import PruningCurve
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.curve_calibration import calibrate_curves
from fedcaptor.common.torch_engine.evidence import recorded
from fedcaptor.common.torch_engine.forward import normalise

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def seen():
    base = BaseModel.load(asset("simulations/models/small_cnn_fashion.safetensors"), "small-cnn", (1, 28, 28))
    x = normalise(load("embedded").x[:60], base.mean, base.std)
    with recorded(base.module, base.groups, Sampler(len(x), 512)) as rows, torch.no_grad():
        base.module(x)
    return base, x, rows


def curves(base: BaseModel, cost: float) -> dict[str, PruningCurve]:
    return {g.name: PruningCurve(np.arange(g.channels), np.full(g.channels, cost)) for g in base.groups.prunable}


@pytest.mark.slow
def test_the_scale_of_a_curve_counts_as_far_as_it_is_believed(seen):
    base, x, rows = seen
    once, tenfold = (calibrate_curves(base, np.arange(3), x, rows, curves(base, cost)) for cost in (1.0, 10.0))
    for name, curve in once.items():
        np.testing.assert_array_equal(curve.order, np.arange(len(curve.order)))
        np.testing.assert_allclose(tenfold[name].cost / curve.cost, 10 ** (1 - POWER))


def test_a_layer_that_the_needed_logits_feel_more_becomes_dearer(seen):
    """Logits of three times the size feel nine times the loss."""
    base, x, rows = seen
    before = calibrate_curves(base, np.arange(3), x, rows, curves(base, 1.0))
    last = base.groups.output.name
    state = {k: v * 3 if k.startswith(f"{last}.") else v for k, v in base.state.items()}
    louder = BaseModel(base.name, state, base.groups, base.mean, base.std, base.rebuild(state))
    after = calibrate_curves(louder, np.arange(3), x, rows, curves(base, 1.0))
    for name, curve in before.items():
        np.testing.assert_allclose(after[name].cost / curve.cost, 9**POWER, rtol=1e-3)


def first(rows: Rows, images: int) -> Rows:
    """Those of the first of 60 images."""
    return {key: observed[: len(observed) * images // 60] for key, observed in rows.items()}


def test_a_layer_wider_than_the_images_are_many_is_not_free(seen):
    """Few images tell of it what many tell, though on them any of its channels give back all others."""
    base, x, rows = seen
    many, few = (
        calibrate_curves(base, np.arange(3), x[:n], first(rows, n), curves(base, 1.0))["classifier.0"] for n in (60, 30)
    )
    assert len(few.order) / KEPT > 30
    assert few.cost[0] > many.cost[0] / 2


@pytest.mark.filterwarnings("error")
def test_one_image_is_enough(seen):
    base, x, rows = seen
    for curve in calibrate_curves(base, np.arange(3), x[:1], first(rows, 1), curves(base, 1.0)).values():
        assert np.isfinite(curve.cost).all()


def test_a_curve_that_says_nothing_stays(seen):
    base, x, rows = seen
    for curve in calibrate_curves(base, np.arange(3), x, rows, curves(base, 0.0)).values():
        np.testing.assert_array_equal(curve.cost, 0)
