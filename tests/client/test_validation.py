"""What a validation set says of a submodel, by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedcaptor.client.owner import Owner
from fedcaptor.client.validation import REFERENCE_WORTH, Validation, _quantile, chance_below
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.config import Fallback
from fedcaptor.common.plan import Plan
from tests.client.fake_engine import GROUPS, FakeEngine, FakeSubmodel, pictures

SMALL = FakeSubmodel(Plan.of(GROUPS, {"a": [0, 1, 2], "b": range(6), "c": [0, 1]}))
OWNER = Owner(np.array([0.6, 0.38, 0.02]), np.array([0, 1]), -1)
NOBODYS = pictures(0)[:0], np.zeros((0, 3), np.float32), np.zeros(0, dtype=np.int64)


@pytest.mark.parametrize("lost", [0.0, 0.3, 1.0, 7.5])
@pytest.mark.parametrize("seen", [0.0, 3.0, 20.0, 400.0])
@pytest.mark.parametrize("bound", [0.01, 0.04, 0.3, 0.9])
def test_the_chance_is_that_of_a_beta_distribution(lost: float, seen: float, bound: float) -> None:
    lost = min(lost, seen)
    expected = stats.beta(0.5 + lost, 1.5 + seen - lost).cdf(bound)
    assert chance_below(bound, lost, seen) == pytest.approx(expected, abs=2e-3)


def test_few_images_are_not_enough_and_many_are() -> None:
    assert [chance_below(0.04, 0, seen) >= 0.6 for seen in (0, 3, 5, 10, 40)] == [False, False, False, True, True]
    assert chance_below(0.04, 1, 40) >= 0.6 > chance_below(0.04, 2, 40)
    assert (chance_below(1.0, 5, 5), chance_below(0.0, 0, 5)) == (1.0, 0.0)


def of(*images: np.ndarray, reference: tuple = NOBODYS) -> Validation:
    check = np.concatenate(images)
    return Validation.of(OWNER, Calibration.none(3), (check, FakeEngine().scores(check)), reference)


def test_a_wrong_answer_costs_as_much_as_the_full_model_is_sure() -> None:
    easy, hard = pictures(0, 1, 0, 1, hard=0.1), pictures(1, 1, hard=0.99)
    found = of(easy, hard).judge(SMALL, Fallback(), 1.0)
    assert (found.seen, found.agreement) == (6, pytest.approx(4 / 6))
    assert found.lost == pytest.approx(2, abs=0.01)
    between = hard.copy()
    between[:, 0, 0, 0] = 99  # the full model hardly tells class 0 from class 1
    assert of(easy, between).judge(SMALL, Fallback(), 1.0).lost < 1.2


def test_reference_images_weigh_by_usage_and_as_much_as_some_own_images() -> None:
    images, labels = pictures(0, 0, 0, 1, hard=0.1), np.array([0, 0, 0, 1])
    found = of(pictures(0)[:0], reference=(images, FakeEngine().scores(images), labels))
    np.testing.assert_allclose(found.weights, REFERENCE_WORTH * np.array([0.6 / 3] * 3 + [0.38]) / 0.98)
    assert found.judge(SMALL, Fallback(), 1.0).seen == pytest.approx(REFERENCE_WORTH)


def test_escalations_cost_the_larger_models_macs() -> None:
    strange = pictures(2, 2, 2, 2)
    found = of(pictures(*[0, 1] * 20, hard=0.1), strange).judge(SMALL, Fallback(score="max-logit"), 0.5)
    assert found.escalated == pytest.approx(4 / 44)
    assert found.effective_macs == pytest.approx(SMALL.macs_ratio + 4 / 44 * 0.5)


def test_without_images_nothing_is_known() -> None:
    found = of(pictures(0)[:0]).judge(SMALL, Fallback(), 1.0)
    assert (found.seen, found.lost, found.threshold) == (0, 0, -np.inf)
    assert not found.good(0.04, 0.6)


def test_the_weighted_quantile() -> None:
    values = np.array([3.0, 1.0, 2.0, 4.0])
    assert _quantile(values, np.ones(4), 0.04) == 1
    assert _quantile(values, np.ones(4), 0.25) == 2
    assert _quantile(values, np.array([1.0, 0.0, 1.0, 1.0]), 0.04) == 2
    assert _quantile(values, np.ones(4), 1.0) == 4
