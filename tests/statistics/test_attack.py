"""An attacker who sees one sum and knows all other phones: what it tells apart stays below the claimed ε."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from fedcaptor.common.privacy.noise import discrete_gaussian
from fedcaptor.common.privacy.sums import SumSpec, decode, encode
from fedcaptor.common.privacy.zcdp import epsilon

pytestmark = pytest.mark.long

P_FAIL = 1e-6  # that a bound below is wrong, for noise as claimed
TRIALS, PHONES, DELTA = 5_000, 20, 1e-5
SPEC = SumSpec("one entry", 1, 1.0, 64.0, 1.0, PHONES, PHONES, min_cohort=20)


def sums(value: float, spec: SumSpec, noisy: int, seed: int) -> NDArray[np.float64]:
    """[TRIALS] sums in which one phone reports `value` and the others nothing; `noisy` of all add their noise."""
    rng = np.random.default_rng(seed)
    total = np.zeros(TRIALS, np.int64)
    for _ in range(noisy - 1):
        total += discrete_gaussian(spec.share_variance, TRIALS, rng)
    total += np.array([encode(np.array([value]), spec, rng)[0] for _ in range(TRIALS)])
    return decode((total & (2**spec.bits - 1)).astype(np.uint32), spec)


def attacked(spec: SumSpec, noisy: int = PHONES) -> float:
    """Lower bound of ε at DELTA, wrong with probability P_FAIL, from guessing "it reported" above a threshold.

    Clopper–Pearson bounds of both error rates. The threshold is fixed beforehand, from the noise that `spec` claims.
    """
    threshold = 0.5 + 1.3 * spec.sigma / spec.scale * math.sqrt(noisy / PHONES)
    hits = int((sums(1.0, spec, noisy, 11) > threshold).sum())
    alarms = int((sums(0.0, spec, noisy, 12) > threshold).sum())
    least = stats.beta.ppf(P_FAIL / 2, hits, TRIALS - hits + 1)
    most = stats.beta.ppf(1 - P_FAIL / 2, alarms + 1, TRIALS - alarms)
    return math.log(max(least - DELTA, 1e-9) / most)


@pytest.mark.parametrize("noisy", [20, 12])
def test_an_attack_stays_below_the_claim(noisy: int) -> None:
    claimed = epsilon([SPEC], DELTA, dishonest=1 - noisy / PHONES)
    assert 0.2 * claimed < attacked(SPEC, noisy) < claimed  # it finds something, and not too much


def test_the_attack_would_find_noise_that_is_too_small() -> None:
    weak = replace(SPEC, noise_multiplier=0.2)
    assert attacked(weak) > epsilon([SPEC], DELTA)
