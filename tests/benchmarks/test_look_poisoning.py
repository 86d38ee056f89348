"""What malicious clients send in sums of looks and moments, what rows hold, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.look_poisoning import ATTACKS, LookMeasurement, LookPoisoning, LyingPhones
from benchmarks.pages.section import section
from benchmarks.record import Record, Row
from fedcaptor.common.domain import length as moments_in
from fedcaptor.common.look import look_of
from tests import tiny

PHONES = 40


@pytest.fixture(scope="module")
def measurement(bars: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> LookMeasurement:
    settings = LookPoisoning(phones=PHONES, epsilon=200.0, images=24, judged=60, liars="0,0.2")
    small = [each for each in tiny.overrides(*bars) if not each.startswith("population.phones")]
    return LookMeasurement(settings, tmp_path_factory.mktemp("looks"), lambda *_: None, small)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_lies_are_within_the_clip_and_in_the_sums_that_they_are_for(measurement: LookMeasurement) -> None:
    attacked, nobody = measurement._attacked(0), np.zeros(PHONES, bool)
    groups, source = attacked.fleet.groups, look_of(attacked.photos.world.reference.x)
    looks, numbers = np.stack([attacked.centres[0], attacked.centre, source + 9]), np.arange(PHONES)
    asked = {
        "look": {"looks": looks, "look_source": source},
        "moments": {"looks": looks, "expected": np.zeros((3, moments_in(groups.tensors)))},
    }
    lying = np.arange(PHONES) < 5
    for attack in ATTACKS:
        of = "look" if attack in ("push", "vanish", "split") else "moments"
        for kind, tensors in asked.items():
            honest = LyingPhones(attacked, nobody).vectors(kind, numbers, tensors)
            found = LyingPhones(attacked, lying, attack).vectors(kind, numbers, tensors)
            np.testing.assert_array_equal(found[5:], honest[5:])
            if kind != of:
                np.testing.assert_array_equal(found, honest)
                continue
            assert np.linalg.norm(found[:5], axis=1).max() <= 1 + 1e-9
            blocks = found[0].reshape(3, -1).any(1)
            assert blocks.tolist() == [False, attack != "split", attack == "split"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_rows(measurement: LookMeasurement) -> None:
    keys = [{"attack": "none", "liars": 0.0, "seed": 0}, {"attack": "push", "liars": 0.2, "seed": 0}]
    honest, pushed = map(measurement.measure, keys)
    attacked = measurement._attacked(0)
    assert honest["accuracy_shipped"] == pytest.approx(attacked.shipped[attacked.photos.cameras].mean())
    assert (honest["bound"], honest["hit_shipped"]) == (0, pytest.approx(attacked.shipped[1]))
    assert pushed["look_error"] != honest["look_error"]


def test_rows_are_of_all_attacks_and_shares() -> None:
    keys = LookPoisoning(liars="0,0.1,0.01", seeds="0,1").row_keys()
    assert len(keys) == 2 * (1 + 2 * len(ATTACKS))
    assert keys[0] == {"attack": "none", "liars": 0.0, "seed": 0}


def test_the_page_has_a_line_for_each_attack() -> None:
    def row(attack: str, liars: float, **more: Any) -> Row:
        shares = {"wrong": 0.25, "adapted": 1.0, "corrected": 0.0, "accuracy": 0.8, "accuracy_shipped": 0.7}
        rest = {"looks": 3, "look_error": 0.5, "bound": 1.25, "hit": 0.9, "hit_shipped": 0.6, "seconds": 1.0}
        return {"attack": attack, "liars": liars, "seed": 0, **shares, **rest, **more}

    rows = [row("none", 0.0, bound=0.0), row("push", 0.01), row("push", 0.1, bound=None)]
    text = section("look_poisoning", Record("look_poisoning", LookPoisoning().shared(), {}, ["it"], rows)).text
    assert "| none | 3 | 0.50 | – | 25.0 | 100 | 0 | 60.0 | 90.0 | 70.0 | 80.0 |" in text
    assert "| push, 1 % | 3 | 0.50 | 1.2 | 25.0 |" in text
    assert "| push, 10 % | 3 | 0.50 | – | 25.0 |" in text
