"""Calibrated logits are log-likelihoods: Bayes' rule takes any prior, whatever the network was trained on."""

from __future__ import annotations

import numpy as np
import pytest

from fedcaptor.common.arrays import Floats, Indices
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.errors import DataError
from fedcaptor.common.softmax import softmax
from fedcaptor.server.calibrate import calibrate

RNG = np.random.default_rng(7)
MEANS = RNG.normal(0, 1.2, (4, 6))
TRAINED = np.array([0.6, 0.25, 0.1, 0.05])


def images(shares: Floats, count: int) -> tuple[Floats, Indices]:
    """Gaussian images of four classes with logits of a network that is twice too sure and knows uneven classes."""
    labels = RNG.choice(4, count, p=shares)
    x = MEANS[labels] + RNG.normal(0, 1, (count, 6))
    log_likelihoods = -((x[:, None] - MEANS) ** 2).sum(2) / 2
    return 2 * (log_likelihoods + np.log(TRAINED)), labels


def test_the_fit_finds_what_the_network_does_wrong() -> None:
    found = calibrate(*images(np.array([0.4, 0.3, 0.2, 0.1]), 6000))
    assert found.temperature == pytest.approx(2, rel=0.1)
    bias = found.bias - found.bias.mean()
    np.testing.assert_allclose(bias, -np.log(TRAINED) + np.log(TRAINED).mean(), atol=0.2)


def test_bayes_rule_holds_for_other_habits() -> None:
    """For an owner of other habits, calibrated answers beat the network's and are as sure as they are right."""
    found, habits = calibrate(*images(np.full(4, 0.25), 4000)), np.array([0.05, 0.05, 0.3, 0.6])
    logits, labels = images(habits, 4000)
    posterior = found.likelihoods(logits) * habits
    posterior /= posterior.sum(1, keepdims=True)
    answers = (logits + np.log(found.prior_for_logits(habits))).argmax(1)
    np.testing.assert_array_equal(answers, posterior.argmax(1))
    assert (answers == labels).mean() > (logits.argmax(1) == labels).mean() + 0.05
    assert posterior.max(1).mean() == pytest.approx((answers == labels).mean(), abs=0.02)
    assert softmax(logits).max(1).mean() > (logits.argmax(1) == labels).mean() + 0.05  # it was not so before


def test_classes_without_images_keep_their_logits() -> None:
    logits, labels = images(np.array([0.5, 0.5, 0.0, 0.0]), 50)
    assert np.abs(calibrate(logits, labels).bias).max() < 20
    nothing = calibrate(np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
    assert (nothing.temperature, nothing.bias.tolist()) == (1.0, [0.0, 0.0, 0.0])


def test_it_travels_and_is_bounded() -> None:
    one = Calibration(1.5, np.array([0.5, -0.25]))
    again = Calibration.unpack(one.packed(), 2)
    assert (again.temperature, again.bias.tolist()) == (1.5, [0.5, -0.25])
    assert again.of(np.array([1])).bias.tolist() == [-0.25]
    for wrong in ([0.0, 0, 0], [np.nan, 0, 0], [1.0, np.inf, 0], [1.0, 0, np.nan], [1.0, 0], [99.0, 0, 0]):
        with pytest.raises(DataError, match="calibration"):
            Calibration.unpack(np.array(wrong, dtype=np.float32), 2)
