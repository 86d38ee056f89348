"""A server that knows all other phones' usage and guesses from one noisy sum whether the last one reported its own."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from fedcaptor.common.privacy.noise import discrete_gaussian
from fedcaptor.common.privacy.sums import SumSpec, decode, encode
from fedcaptor.common.privacy.zcdp import epsilon, noise_multiplier
from fedcaptor.common.statistics import in_block

pytestmark = pytest.mark.long

P_FAIL = 1e-6  # that an interval below is wrong
TRIALS, PHONES, EPSILON, DELTA = 4_000, 20, 1.0, 1e-5
OWN = in_block(np.array([0.0, 0.0, 1.0, 0.0]), 1, 2)  # one class alone: the largest norm that a report can have
PLAN = SumSpec("1-usage-1", OWN.size, 1.0, 256.0, 1.0, PHONES, PHONES, min_cohort=20)
SPEC = replace(PLAN, noise_multiplier=noise_multiplier(EPSILON, DELTA, [PLAN]))
BOUND = (math.exp(EPSILON) - 1 + 2 * DELTA) / (math.exp(EPSILON) + 1)


def guesses(vector: NDArray[np.float64], spec: SumSpec, seed: int) -> int:
    """How often in `TRIALS` sums the server says "it reported". What it knows of the others is taken off already.

    The optimal test between two Gaussians: the sum's part along the report, above half of the report's length.
    """
    rng = np.random.default_rng(seed)
    total = np.array([encode(vector, spec, rng) for _ in range(TRIALS)], np.int64)
    for _ in range(PHONES - 1):
        total += discrete_gaussian(spec.share_variance, (TRIALS, spec.length), rng)
    sums = np.array([decode((row & (2**spec.bits - 1)).astype(np.uint32), spec) for row in total])
    return int((sums @ OWN > 0.5).sum())


def advantage(spec: SumSpec) -> tuple[float, float]:
    """Clopper–Pearson bounds of (true positives − false positives), together wrong with probability `P_FAIL`."""
    hits, alarms = guesses(OWN, spec, 21), guesses(np.zeros(OWN.size), spec, 22)

    def low(count: int) -> float:
        return float(stats.beta.ppf(P_FAIL / 4, count, TRIALS - count + 1)) if count else 0.0

    def high(count: int) -> float:
        return float(stats.beta.ppf(1 - P_FAIL / 4, count + 1, TRIALS - count)) if count < TRIALS else 1.0

    return low(hits) - high(alarms), high(hits) - low(alarms)


def test_the_advantage_is_below_what_epsilon_allows() -> None:
    least, most = advantage(SPEC)
    assert 0.9 * EPSILON < epsilon([SPEC], DELTA) <= EPSILON
    assert least > 0  # the attack sees something
    assert most < BOUND


def test_too_little_noise_is_found() -> None:
    least, _ = advantage(replace(SPEC, noise_multiplier=SPEC.noise_multiplier / 8))
    assert least > BOUND
