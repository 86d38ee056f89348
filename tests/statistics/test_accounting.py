"""The accounting against divergences of sums of discrete Gaussians that are computed from their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.privacy.zcdp import epsilon, share_gap, sum_zcdp
from tests.statistics.exact import delta_at, renyi, sum_mass

ORDERS = (1.01, 1.5, 2.0, 4.0, 8.0, 16.0)
SHARES = 20
DELTA = 1e-5


def one_entry(share_variance: float, clip: int) -> SumSpec:
    """A sum of one entry in whole quanta."""
    multiplier = math.sqrt(share_variance * SHARES) / clip
    return SumSpec("one entry", 1, 1.0, float(clip), multiplier, SHARES, SHARES, min_cohort=20)


@pytest.mark.parametrize(
    ("variance", "clip"), [(0.25, 1), (0.26, 2), (0.3, 3), (0.5, 2), (1.0, 4), (4.0, 9), (40.0, 30)]
)
def test_no_divergence_is_above_the_charge(variance: float, clip: int) -> None:
    charge, mass = sum_zcdp(one_entry(variance, clip)), sum_mass(variance, SHARES)
    found = [renyi(mass, clip, order) / order for order in ORDERS]
    assert max(found) <= charge * (1 + 1e-9)
    if variance >= 1:  # the sum is as good as one discrete Gaussian: the charge is exact
        assert min(found) >= charge * (1 - 1e-3)


def test_coarse_shares_are_worse_than_one_gaussian_and_the_charge_knows() -> None:
    mass, naive = sum_mass(0.25, SHARES), 1 / (2 * 0.25 * SHARES)
    assert renyi(mass, 1, 1.5) / 1.5 > 1.1 * naive
    assert sum_zcdp(one_entry(0.25, 1)) > 1.1 * naive


@pytest.mark.parametrize("clip", [1, 2, 4])
def test_several_entries_moved_at_once_are_within_the_charge(clip: int) -> None:
    """16 entries by `clip` each: norm 4 · clip. Divergences of independent entries add up."""
    multiplier = math.sqrt(0.4 * SHARES) / (4 * clip)
    spec = SumSpec("16 entries", 16, 4.0 * clip, 1.0, multiplier, SHARES, SHARES, min_cohort=20)
    mass, charge = sum_mass(0.4, SHARES), sum_zcdp(spec)
    for order in ORDERS:
        assert 16 * renyi(mass, clip, order) / order <= charge


@pytest.mark.parametrize(("variance", "clip"), [(0.3, 2), (1.0, 4), (4.0, 3), (40.0, 30)])
@pytest.mark.parametrize("silent", [0, 5])
def test_delta_at_the_claimed_epsilon_is_kept(variance: float, clip: int, silent: int) -> None:
    """`silent` phones leave out their noise."""
    claimed = epsilon([one_entry(variance, clip)], DELTA, dishonest=silent / SHARES)
    mass = sum_mass(variance, SHARES - silent)
    assert delta_at(mass, clip, claimed) <= DELTA
    if variance >= 1:  # and not by a claim without worth: by zCDP it is at most a fifth too large
        assert delta_at(mass, clip, claimed / 1.2) > DELTA


def test_the_gap_of_a_published_formula_by_exact_sums() -> None:
    """Kairouz et al. 2021, theorem 1: log ratio of the sum's mass to one discrete Gaussian's is at most tau."""
    for variance in (0.4, 0.6, 1.0):
        mass = sum_mass(variance, 10)
        x = np.arange(mass.size) - mass.size // 2
        single = np.exp(-(x**2) / (2 * 10 * variance))
        near = np.abs(x) <= 6 * math.sqrt(10 * variance)
        ratio = np.log(mass[near] / (single / single.sum())[near])
        assert np.abs(ratio).max() <= share_gap(variance, 10)
