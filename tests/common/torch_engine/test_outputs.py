"""Refitted outputs: least squares by hand where the answer is known, the served ones untouched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from fedcaptor.common.planner import Budget, allocate
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.outputs import features, last_layer, refitted
from fedcaptor.common.torch_engine.prune import Evidence
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")
NEEDED, OTHERS = np.array([1, 4]), np.array([0, 2, 3, 5])


@pytest.fixture(scope="module")
def submodel(bars: tuple[Path, Path]) -> Submodel:
    """For classes 1 and 4, with all outputs."""
    base = tiny.base_model(bars[1])
    x, y = tiny.images(300, 5)
    evidence = Evidence.gather(base, NEEDED, x[np.isin(y, NEEDED)])
    return evidence.build(allocate(base.groups, evidence.curves, np.arange(tiny.CLASSES), Budget(0.6, 2)))


def full(base: BaseModel, images: np.ndarray) -> np.ndarray:
    return logits(base.module, normalise(images, base.mean, base.std))


def test_features_are_what_the_last_layer_reads(submodel: Submodel) -> None:
    x, z = features(submodel, tiny.images(30, 6)[0], batch=7)
    last = last_layer(submodel)
    np.testing.assert_allclose(x @ last.weight.numpy().T + last.bias.numpy(), z, rtol=1e-4, atol=1e-4)


def test_other_outputs_are_ridge_regression_and_served_ones_stay(submodel: Submodel) -> None:
    images = tiny.images(200, 7)[0]
    x, z = features(submodel, images)
    found = refitted(submodel, images, OTHERS, ridge=20)
    fresh = tiny.images(50, 8)[0]
    expected = features(submodel, fresh)[1].astype(np.float64)
    strength = 20 * x.var(0).mean()
    missing = Ridge(strength).fit(x, full(submodel.base, images)[:, OTHERS] - z[:, OTHERS])
    expected[:, OTHERS] += missing.predict(features(submodel, fresh)[0])
    np.testing.assert_allclose(found.scores(fresh), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found.scores(fresh)[:, NEEDED], submodel.scores(fresh)[:, NEEDED])
    assert np.abs(found.scores(fresh) - submodel.scores(fresh)).max() > 0.1


def test_they_follow_the_base_where_merging_did_not_look(submodel: Submodel) -> None:
    found = refitted(submodel, tiny.images(300, 7)[0], OTHERS)
    images, labels = tiny.images(300, 9)
    images = images[~np.isin(labels, NEEDED)]
    wanted = full(submodel.base, images)[:, OTHERS]
    merged, again = (((model.scores(images)[:, OTHERS] - wanted) ** 2).mean() for model in (submodel, found))
    assert again < 0.8 * merged
