"""Noise as it reaches the server: shares of many phones, encoded, added and decoded. Seeded."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from fedcaptor.common.privacy.noise import discrete_gaussian
from fedcaptor.common.privacy.sums import SumSpec, encode
from fedcaptor.server.plain_sum import PlainAggregator
from tests.statistics.exact import gaussian_mass, sum_mass

P_FAIL = 1e-6  # of each test, for a correct sampler
PHONES, DRAWS = 20, 40_000


def chi_square(values: NDArray[np.int64], mass: NDArray[np.float64]) -> float:
    """p-value of integers having that mass about 0; cells of fewer than 20 expected are joined, one for each tail."""
    x = np.arange(mass.size) - mass.size // 2
    cells = np.flatnonzero(mass * values.size >= 20)
    low, high = x[cells[0]], x[cells[-1]]
    expected = np.concatenate([[mass[: cells[0] + 1].sum()], mass[cells[1:-1]], [mass[cells[-1] :].sum()]])
    seen = np.bincount(np.clip(values, low, high) - low, minlength=high - low + 1)
    return float(stats.chisquare(seen, expected * values.size).pvalue)


@pytest.mark.parametrize("variance", [0.3, 2.0, 30.0])
def test_the_noise_of_a_sum_is_the_sum_of_its_shares(variance: float) -> None:
    spec = SumSpec("zeros", DRAWS, 1.0, 8.0, math.sqrt(variance * PHONES) / 8, PHONES, PHONES, min_cohort=20)
    rng, aggregator = np.random.default_rng(int(10 * variance)), PlainAggregator(spec)
    for _ in range(PHONES):
        aggregator.add(encode(np.zeros(DRAWS), spec, rng))
    total = np.rint(aggregator.finish() * spec.scale).astype(np.int64)
    assert chi_square(total, sum_mass(variance, PHONES)) > P_FAIL


def test_the_chi_square_sees_another_variance() -> None:
    values = discrete_gaussian(2.0, DRAWS, np.random.default_rng(1))
    assert chi_square(values, gaussian_mass(2.0)) > P_FAIL
    assert chi_square(values, gaussian_mass(2.2)) < P_FAIL


def test_neighbouring_draws_are_independent() -> None:
    values = discrete_gaussian(2.0, 2 * DRAWS, np.random.default_rng(2))
    pairs = np.zeros((5, 5))
    np.add.at(pairs, tuple((np.clip(values, -2, 2) + 2).reshape(-1, 2).T), 1)
    assert stats.chi2_contingency(pairs).pvalue > P_FAIL
