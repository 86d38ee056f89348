"""The simulator's own figures: phones without test images are counted, not scored."""

import math

import numpy as np
import pytest

from common.config import load_config
from simulations.oracle import Oracle, _auroc
from simulations.runner import build_world
from simulations.summary import _spread

PHONES = 6


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Phones before any personalisation, the first without test images."""
    directory = tmp_path_factory.mktemp("oracle")
    config = load_config(None, [f"population.phones={PHONES}", "population.test_images=30"])
    world = build_world(config, directory)
    test = np.load(directory / "oracle/test.npy")
    test[0, 0] = -1
    np.save(directory / "oracle/test.npy", test)
    oracle = Oracle(directory, config, world.base, [])
    return [oracle.phone(number, 1) for number in range(PHONES)]


def test_a_phone_without_test_images_is_not_scored(figures):
    bare, others = figures[0], figures[1:]
    for name in ("accuracy", "accuracy_full", "accuracy_full_limited", "accuracy_outside", "escalated"):
        assert math.isnan(getattr(bare, name)), name
    assert math.isnan(bare.effective_macs_ratio)
    assert math.isnan(bare.auroc)
    assert bare.macs_ratio == 1.0
    assert all(0.5 < phone.accuracy <= 1 for phone in others)
    assert _spread(figures, "accuracy")["mean"] == pytest.approx(np.mean([phone.accuracy for phone in others]))


def test_full_models_answer_alike_and_know_more_when_limited_to_the_own_classes(figures):
    for phone in figures[1:]:
        assert phone.accuracy == phone.accuracy_full == phone.accuracy_cluster
        assert phone.accuracy_full_limited >= phone.accuracy_full
        assert phone.escalated == 0


def test_auroc_by_hand():
    inside = np.array([True, True, True, False, False])
    assert _auroc(inside, np.array([3.0, 2.0, 0.5, 1.0, 0.0])) == pytest.approx(5 / 6)
    assert math.isnan(_auroc(inside, np.zeros(5)))
    assert math.isnan(_auroc(np.ones(5, dtype=bool), np.arange(5.0)))
    assert math.isnan(_auroc(np.zeros(0, dtype=bool), np.zeros(0)))
