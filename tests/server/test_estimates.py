"""Errors of private estimates, against the spread of many noisy sums of one fleet."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedcaptor.common.energy import energy_ratio
from fedcaptor.common.privacy.sums import SumSpec, decode, encode
from fedcaptor.common.statistics import OUTCOME_FIGURES
from fedcaptor.server.energy import energy_weights
from fedcaptor.server.estimates import fleet_phones, fleet_ratio
from tests.common.small_groups import small_groups

CLUSTERS, PHONES, TRIALS = 3, 60, 400
FIGURES = len(OUTCOME_FIGURES)


def one(cluster: int, macs: float) -> np.ndarray:
    vector = np.zeros((CLUSTERS, FIGURES))
    vector[cluster] = [1.0, 0.9, 0.95, macs, macs**2, 0.1, 1.0, float(macs > 0.4)]
    return vector.ravel()


@pytest.fixture(scope="module")
def fleet() -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.array([one(int(rng.integers(CLUSTERS)), rng.uniform(0.1, 0.5)) for _ in range(PHONES)])


def noisy_sums(fleet: np.ndarray, multiplier: float) -> tuple[list[np.ndarray], float]:
    """Sums as phones send them, each phone with its share of the noise, and the deviation that the spec states."""
    spec = SumSpec("1-outcome-0", fleet.shape[1], math.sqrt(FIGURES), 4000, multiplier, PHONES, PHONES, bits=32)
    rng = np.random.default_rng(2)
    totals = [
        np.sum([encode(vector, spec, rng) for vector in fleet], axis=0, dtype=np.uint64).astype(np.uint32)
        for _ in range(TRIALS)
    ]
    return [decode(total, spec).reshape(CLUSTERS, FIGURES) for total in totals], spec.deviation


@pytest.mark.slow
def test_the_error_is_the_spread_over_many_noisy_sums(fleet: np.ndarray) -> None:
    """With 400 sums a sample deviation is within 15 % of the true one in all but one of 10,000 tries."""
    sums, deviation = noisy_sums(fleet, 0.8)
    weights = {name: {name: 1.0} for name in ("macs", "escalated", "drifted")} | {
        "energy": energy_weights(small_groups())
    }
    for name, of in weights.items():
        found = [fleet_ratio(total, deviation, of) for total in sums]
        assert all(found), name
        values, errors = np.array([(each.value, each.stddev) for each in found if each]).T
        assert values.std() == pytest.approx(errors.mean(), rel=0.15), name
    truth = fleet.reshape(PHONES, CLUSTERS, FIGURES).sum((0, 1))[3] / PHONES
    macs = [fleet_ratio(total, deviation, {"macs": 1.0}) for total in sums]
    within = [abs(each.value - truth) <= 2 * each.stddev for each in macs if each]
    assert 0.9 <= np.mean(within) <= 0.99  # a normal distribution has 95 %
    phones = [fleet_phones(total, deviation) for total in sums]
    assert np.std([each.value for each in phones]) == pytest.approx(phones[0].stddev, rel=0.15)


def test_by_hand() -> None:
    sums = np.zeros((4, FIGURES))
    sums[:, 0], sums[:, 3] = 25, 10  # 100 phones at 40 % of the MACs
    found = fleet_ratio(sums, 5.0, {"macs": 1.0})
    assert found is not None
    assert found.value == pytest.approx(0.4)
    assert found.stddev == pytest.approx(0.1 * math.sqrt(1 + 0.16))
    exact = fleet_ratio(sums, 0.0, {"macs": 1.0})
    assert exact is not None
    assert exact.stddev == 0
    rounded = fleet_ratio(sums, 0.0, {"macs": 1.0, "escalated": 2.0}, quantum=0.02)
    assert rounded is not None
    assert rounded.stddev == pytest.approx(0.03)


def test_what_noise_could_make_up_is_no_figure() -> None:
    sums = np.zeros((4, FIGURES))
    sums[:, 0], sums[:, 3] = 4.9, 2  # 19.6 phones with an error of 10
    assert fleet_ratio(sums, 5.0, {"macs": 1.0}) is None
    assert fleet_phones(sums, 5.0).stddev == 10
    assert fleet_ratio(np.zeros((4, FIGURES)), 0.0, {"macs": 1.0}) is None


def test_figures_stay_within_what_they_can_be() -> None:
    sums = np.zeros((1, FIGURES))
    sums[:, 0], sums[:, 3], sums[:, 2] = 50, -3, 55
    assert [fleet_ratio(sums, 1.0, {name: 1.0}).value for name in ("macs", "agreement")] == [0, 1]  # type: ignore[union-attr]


def test_energy_of_the_full_model_is_one() -> None:
    weights = energy_weights(small_groups())
    assert weights["macs"] + weights["parameters"] + weights["phones"] == pytest.approx(1)


def test_energy_of_evenly_pruned_models_is_estimated_closely_and_from_above() -> None:
    groups = small_groups(64, 128)
    weights = energy_weights(groups)
    for share in (0.25, 0.5, 0.75):
        kept = {"a": int(64 * share), "b": int(128 * share)}
        figures = {"phones": 1, "macs": groups.macs_ratio(kept), "parameters": groups.parameters_ratio(kept)}
        estimated = sum(weights[name] * value for name, value in figures.items())
        assert energy_ratio(groups, kept) <= estimated <= energy_ratio(groups, kept) + 0.05
