"""Sums that honest phones cannot have made are told from those that they can."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.sums import SumSpec, decode, encode
from fedcaptor.server.plausible import bounds, check, tolerated

PHONES = 20
SPEC = SumSpec("1-usage-1", 12, 1.0, 64.0, 2.0, PHONES, PHONES, min_cohort=20)


def total(vectors: np.ndarray, spec: SumSpec, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    words = sum(encode(v, spec, rng).astype(np.int64) for v in vectors)
    return decode((words & (2**spec.bits - 1)).astype(np.uint32), spec)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), rotated=st.booleans(), noise=st.sampled_from([0.0, 2.0]), peak=st.booleans())
def test_honest_sums_pass(seed: int, rotated: bool, noise: float, peak: bool) -> None:
    spec = replace(SPEC, rotated=rotated, noise_multiplier=noise)
    vectors = np.zeros((PHONES, 12))
    vectors[:, 0] = 5.0
    if not peak:
        vectors = np.random.default_rng(seed).gamma(0.3, size=vectors.shape)
    check(total(vectors, spec, seed), spec, PHONES)


def test_bounds_by_hand() -> None:
    quiet = bounds(replace(SPEC, noise_multiplier=0.0), PHONES)
    assert (quiet.norm, quiet.least, quiet.largest) == pytest.approx((20, 0, 20), abs=1e-4)
    tail = 2 * np.sqrt(12 + 2 * np.sqrt(12 * 28.4188) + 2 * 28.4188)  # ln 2^41 = 28.4188
    assert bounds(SPEC, PHONES).norm == pytest.approx(20 + tail, 1e-4)


@pytest.mark.parametrize(("entry", "size", "what"), [(3, 1000.0, "norm"), (3, -25.0, "least entry")])
def test_a_phone_that_does_not_clip_is_caught_beyond_the_bound(entry: int, size: float, what: str) -> None:
    honest = total(np.full((PHONES, 12), 0.1), SPEC, 1)
    honest[entry] += size
    with pytest.raises(PrivacyError, match=f"1-usage-1: {what} .* is beyond .* ask another cohort"):
        check(honest, SPEC, PHONES)


def test_one_phone_may_still_shift_a_sum_within_the_bound() -> None:
    """What the check cannot see: as much as all phones together may weigh."""
    poisoned = total(np.full((PHONES, 12), 0.01), SPEC, 1)
    poisoned[3] += 15.0
    check(poisoned, SPEC, PHONES)


def test_a_median_tolerates_fewer_liars_in_larger_cohorts() -> None:
    assert [round(100 * tolerated(m), 2) for m in (1, 20, 50, 100, 200)] == [50.0, 3.41, 1.38, 0.69, 0.35]
