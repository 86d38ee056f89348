"""How a phone answers: the submodel where it is sure, the full model elsewhere, in the original labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import roc_auc_score

from fedcaptor.client.fallback import ABSTAINED, Answers, Models, answer, out_of_set_score
from fedcaptor.client.torch_engine import TorchEngine
from fedcaptor.common.config import Fallback
from fedcaptor.common.planner import Budget
from fedcaptor.common.softmax import softmax
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.prune import prune
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")
LOGITS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 6)), elements=st.floats(-80, 80, width=32)
)


def test_scores_by_hand() -> None:
    z = np.log(np.array([[1, 1, 2], [1, 8, 1]], dtype=np.float32))
    np.testing.assert_allclose(out_of_set_score(z, "max-softmax"), [0.5, 0.8], rtol=1e-6)
    np.testing.assert_allclose(out_of_set_score(z, "energy"), np.log([4, 10]), rtol=1e-6)


def test_scores_against_other_outputs_by_hand() -> None:
    z, others = np.log(np.array([[1.0, 4.0]])), np.log(np.array([[2.0, 3.0]]))
    found = {kind: out_of_set_score(z, kind, others).item() for kind in ("energy", "max-softmax", "max-logit")}
    expected = {"energy": np.log(5 / 5), "max-softmax": 0.4, "max-logit": np.log(4 / 5)}
    assert found == pytest.approx(expected)
    for kind in found:
        np.testing.assert_array_equal(out_of_set_score(z, kind, others[:, :0]), out_of_set_score(z, kind))


@given(LOGITS, st.floats(-20, 20))
def test_a_common_shift_moves_energy_alone(z: np.ndarray, shift: float) -> None:
    sure, energy = (out_of_set_score(z, kind) for kind in ("max-softmax", "energy"))
    assert (sure <= 1 + 1e-9).all()
    assert (sure >= 1 / z.shape[1] - 1e-9).all()
    moved = z.astype(np.float64) + shift
    np.testing.assert_allclose(out_of_set_score(moved, "max-softmax"), sure, rtol=1e-6)
    np.testing.assert_allclose(out_of_set_score(moved, "energy"), energy + shift, atol=1e-6)


World = tuple[BaseModel, Submodel, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def world(bars: tuple[Path, Path]) -> World:
    """Base model, its submodel for classes 1 and 4, images of all classes with labels."""
    base = tiny.base_model(bars[1])
    x, y = tiny.images(200, 5)
    return base, prune(base, np.array([1, 4]), x[np.isin(y, [1, 4])], Budget(0.6, 2)), x, y


def answered(world: World, threshold: float, images: np.ndarray, *, small: bool = True, prior=None) -> Answers:
    base, submodel, _, _ = world
    prior = np.full(tiny.CLASSES, 1 / tiny.CLASSES) if prior is None else prior
    models = Models(submodel if small else None, TorchEngine(base).whole(), prior, threshold, submodel.classes)
    return answer(TorchEngine(base), models, Fallback(score="max-softmax"), images)


def test_below_the_threshold_the_full_model_answers(world: World) -> None:
    base, submodel, x, _ = world
    scores = out_of_set_score(submodel.scores(x), "max-softmax")
    threshold = float(np.median(scores))
    found = answered(world, threshold, x)
    np.testing.assert_array_equal(found.escalated, scores < threshold)
    np.testing.assert_array_equal(found.alone, submodel.classes[submodel.scores(x).argmax(1)])
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)
    sure, full = ~found.escalated, logits(base.module, normalise(x, base.mean, base.std)).argmax(1)
    np.testing.assert_array_equal(found.labels[sure], submodel.predict(x)[sure])
    np.testing.assert_array_equal(found.labels[~sure], full[~sure])
    assert set(found.labels[sure].tolist()) == {1, 4}
    assert set(found.labels.tolist()) > {1, 4}  # other classes are named by the full model


def test_a_submodel_that_is_sure_answers_alone(world: World) -> None:
    _, submodel, x, y = world
    own = np.isin(y, [1, 4])
    found = answered(world, -np.inf, x[own])
    assert not found.escalated.any()
    np.testing.assert_array_equal(found.labels, submodel.predict(x[own]))
    assert (found.labels == y[own]).mean() > 0.8


def test_other_outputs_are_never_answered_but_say_what_is_of_other_classes(world: World) -> None:
    base, _, x, y = world
    own, prior = np.array([1, 4]), np.full(tiny.CLASSES, 1 / tiny.CLASSES)
    models = Models(TorchEngine(base).whole(), None, prior, -np.inf, own)
    found = answer(TorchEngine(base), models, Fallback(score="max-softmax"), x)
    assert set(found.labels.tolist()) == {1, 4}
    assert models.served.tolist() == [1, 4]
    inside = np.isin(y, own)
    assert roc_auc_score(inside, found.scores) > 0.9
    z = logits(base.module, normalise(x, base.mean, base.std))
    np.testing.assert_allclose(found.scores, softmax(z)[:, own].max(1), rtol=1e-5)


def test_with_nothing_larger_nobody_answers_what_is_unsure(world: World) -> None:
    base, submodel, x, _ = world
    models = Models(submodel, None, np.full(tiny.CLASSES, 1 / tiny.CLASSES), 0.9, submodel.classes)
    found = answer(TorchEngine(base), models, Fallback(score="max-softmax"), x)
    assert 0 < found.escalated.sum() < len(x)
    np.testing.assert_array_equal(found.labels == ABSTAINED, found.escalated)


def test_without_a_submodel_the_full_model_answers_all(world: World) -> None:
    base, _, x, _ = world
    found = answered(world, 0.9, x, small=False)
    np.testing.assert_array_equal(found.labels, logits(base.module, normalise(x, base.mean, base.std)).argmax(1))
    assert not found.escalated.any()
    assert len(answered(world, 0.9, x[:0], small=False).labels) == 0


@pytest.mark.parametrize("small", [True, False])
def test_habits_weigh_the_answers(world: World, small: bool) -> None:
    """An owner who meets class 4 alone, but for one image in a million million, is answered with 4."""
    x = world[2]
    prior = np.full(tiny.CLASSES, 1e-12)
    prior[4] = 1 - prior.sum()
    assert (answered(world, -np.inf, x, small=small, prior=prior).labels == 4).mean() > 0.95
