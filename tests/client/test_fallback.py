"""How a phone answers: the submodel where it is sure, the full model elsewhere, in the original labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from client.fallback import answer, out_of_set_score
from common.config import Fallback
from common.planner import Budget
from common.torch_engine.base import BaseModel, Submodel
from common.torch_engine.forward import logits, normalise
from common.torch_engine.prune import prune
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")
LOGITS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 6)), elements=st.floats(-80, 80, width=32)
)


def test_scores_by_hand() -> None:
    z = np.log(np.array([[1, 1, 2], [1, 8, 1]], dtype=np.float32))
    np.testing.assert_allclose(out_of_set_score(z, "max-softmax"), [0.5, 0.8], rtol=1e-6)
    np.testing.assert_allclose(out_of_set_score(z, "energy"), np.log([4, 10]), rtol=1e-6)


@given(LOGITS, st.floats(-20, 20))
def test_a_common_shift_moves_energy_alone(z: np.ndarray, shift: float) -> None:
    softmax, energy = (out_of_set_score(z, kind) for kind in ("max-softmax", "energy"))
    assert (softmax <= 1 + 1e-9).all()
    assert (softmax >= 1 / z.shape[1] - 1e-9).all()
    moved = z.astype(np.float64) + shift
    np.testing.assert_allclose(out_of_set_score(moved, "max-softmax"), softmax, rtol=1e-6)
    np.testing.assert_allclose(out_of_set_score(moved, "energy"), energy + shift, atol=1e-6)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[BaseModel, Submodel, np.ndarray, np.ndarray]:
    _, weights = tiny.write(tmp_path_factory.mktemp("tiny"))
    base = tiny.base_model(weights)
    x, y = tiny.images(200, 5)
    return base, prune(base, np.array([1, 4]), x[np.isin(y, [1, 4])], Budget(0.6, 2)), x, y


def test_below_the_threshold_the_full_model_answers(world) -> None:
    base, submodel, x, _ = world
    scores = out_of_set_score(submodel.scores(x), "max-softmax")
    threshold = float(np.median(scores))
    given_answers = answer(base, submodel, threshold, Fallback(), x)
    np.testing.assert_array_equal(given_answers.escalated, scores < threshold)
    np.testing.assert_allclose(given_answers.scores, scores)
    sure = ~given_answers.escalated
    np.testing.assert_array_equal(given_answers.labels[sure], submodel.predict(x)[sure])
    assert set(given_answers.labels[sure].tolist()) <= {1, 4}
    assert set(given_answers.labels.tolist()) > {1, 4}  # other classes are named by the full model


def test_an_image_that_is_sure_never_needs_the_full_model(world) -> None:
    base, submodel, x, y = world
    own = x[np.isin(y, [1, 4])]
    always = answer(base, submodel, -np.inf, Fallback(), own)
    assert not always.escalated.any()
    np.testing.assert_array_equal(always.labels, submodel.predict(own))
    assert (always.labels == y[np.isin(y, [1, 4])]).mean() > 0.8


def test_without_a_submodel_the_full_model_answers_all(world) -> None:
    base, _, x, _ = world
    full = logits(base.module, normalise(x, base.mean, base.std)).argmax(1)
    given_answers = answer(base, None, 0.9, Fallback(), x)
    np.testing.assert_array_equal(given_answers.labels, full)
    assert not given_answers.escalated.any()
    assert len(answer(base, None, 0.9, Fallback(), x[:0]).labels) == 0
