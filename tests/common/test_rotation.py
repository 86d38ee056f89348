"""Rotation and rounding: inverse, norm, spread, no bias; rotated sums: sensitivity, bits, the wire."""

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.linalg import hadamard

from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.messages import SumFields
from fedcaptor.common.privacy.rotation import block, norm_for, rotate, rotate_back, rounded, rounded_norm
from fedcaptor.common.privacy.sums import MAX_WRAP, SumSpec, encode
from fedcaptor.server.plain_sum import PlainAggregator

P_FAIL = 1e-6  # of each statistical assertion
SPEC = SumSpec(
    "scores", 42, clip=2.0, scale=64.0, noise_multiplier=0.0, cohort=50, min_survivors=20, min_cohort=20, rotated=True
)
VECTORS = st.integers(1, 300).flatmap(
    lambda n: st.lists(st.floats(-1e3, 1e3, allow_nan=False), min_size=n, max_size=n).map(np.array)
)
SEEDS = st.text("0123456789abcdef", min_size=64, max_size=64)


@pytest.mark.slow
@settings(max_examples=100)
@given(x=VECTORS, seed=SEEDS)
def test_rotation_keeps_the_norm_and_comes_back(x, seed):
    y = rotate(x, seed)
    assert y.shape == x.shape
    assert np.linalg.norm(y) == pytest.approx(np.linalg.norm(x), abs=1e-9)
    np.testing.assert_allclose(rotate_back(y, seed), x, atol=1e-9)


def by_hand(seed, length):
    """Matrix of the rotation, from the definition: signs are bits of SHAKE-256, low bit first; a set bit is −1."""
    size = 2 ** int(math.log2(length))
    stream = hashlib.shake_256(b"fedcaptor rotation " + seed.encode()).digest(size)
    bits = [stream[i // 8] >> (i % 8) & 1 for i in range(2 * size)]
    result = np.eye(length)
    for part, start in ((0, 0), (1, length - size)):
        if part and start == 0:
            break
        step = np.eye(length)
        signs = np.diag([1 - 2 * bit for bit in bits[part * size : (part + 1) * size]])
        step[start : start + size, start : start + size] = hadamard(size) / math.sqrt(size) @ signs
        result = step @ result
    return result


@pytest.mark.parametrize("length", [1, 2, 5, 8, 13, 42])
def test_rotation_by_its_definition(length):
    matrix = by_hand("ab" * 32, length)
    np.testing.assert_allclose(
        np.stack([rotate(e, "ab" * 32) for e in np.eye(length)], axis=1), matrix, rtol=0, atol=1e-12
    )
    assert (block(length), 2 * block(length) > length) == (2 ** int(math.log2(length)), True)


def test_another_seed_is_another_rotation():
    x = np.ones(64)
    assert not np.allclose(rotate(x, "0" * 64), rotate(x, "1" * 64))


@pytest.mark.parametrize("x", [np.eye(700)[650], np.ones(700) / math.sqrt(700), np.eye(700)[0]])
def test_large_entries_are_spread_as_the_bound_says(x):
    """Over 300 seeds: entries of 700 above the bound of probability 1e-6 / 300 in all, and a bound that is not far."""
    peaks = [np.abs(rotate(x, hashlib.sha256(bytes([n % 256, n // 256])).hexdigest())).max() for n in range(300)]
    assert max(peaks) <= math.sqrt(2 * math.log(2 * 700 * 300 / P_FAIL) / block(700))
    assert max(peaks) >= 1 / math.sqrt(700)


@pytest.mark.slow
@settings(max_examples=200)
@given(x=VECTORS, seed=st.integers(0, 2**32))
def test_rounding_takes_neighbours_within_the_norm(x, seed):
    bound = rounded_norm(float(np.linalg.norm(x)), x.size)
    quanta = rounded(x, bound, np.random.default_rng(seed))
    assert np.all(np.abs(quanta - x) < 1)
    assert int(quanta @ quanta) <= bound**2


def test_rounding_has_no_bias_and_almost_always_fits_at_once():
    rng, x = np.random.default_rng(5), np.random.default_rng(6).normal(0, 3, 400)
    bound = rounded_norm(float(np.linalg.norm(x)), 400)
    draws = np.array([rounded(x, bound, rng) for _ in range(2000)])
    part = x - np.floor(x)
    z = (draws.mean(0) - x) / np.sqrt(part * (1 - part) / 2000 + 1e-12)
    assert np.abs(z).max() < stats.norm.isf(P_FAIL / 800) + 0.5  # the condition on the norm moves a mean by far less
    assert abs(draws.mean(0) @ x / (x @ x) - 1) < 0.003


def test_an_unreachable_bound_ends_in_truncation():
    np.testing.assert_array_equal(rounded(np.array([1.9, -1.9]), 1.5, np.random.default_rng(0)), [1, -1])


@settings(max_examples=100)
@given(length=st.integers(1, 1 << 24), growth=st.floats(1e-3, 0.5))
def test_the_norm_for_a_growth_has_it(length, growth):
    norm = norm_for(length, growth)
    assert rounded_norm(norm, length) ** 2 <= norm**2 * (1 + growth) * (1 + 1e-9)
    if norm > math.sqrt(length):  # below, a coarser bound holds too
        assert rounded_norm(0.9 * norm, length) ** 2 > (0.9 * norm) ** 2 * (1 + growth)


@pytest.mark.slow
@settings(max_examples=200)
@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=42, max_size=42), seed=st.integers(0))
def test_a_rotated_reply_never_exceeds_its_sensitivity(values, seed):
    quanta = encode(np.array(values), SPEC, np.random.default_rng(seed)).view(np.int32).astype(np.int64)
    assert int(quanta @ quanta) <= SPEC.sensitivity**2
    assert SPEC.sensitivity == rounded_norm(128.0, 42) > 128


def summed(vectors, spec, seed=0):
    rng, aggregator = np.random.default_rng(seed), PlainAggregator(spec)
    for vector in vectors:
        aggregator.add(encode(vector, spec, rng))
    return aggregator.finish()


def test_a_rotated_sum_is_the_sum_but_for_rounding():
    vectors = np.random.default_rng(1).normal(0, 0.2, (50, 42))
    error = (summed(vectors, SPEC) - vectors.sum(0)) * SPEC.scale
    assert 0 < np.abs(error).max() < stats.norm.isf(P_FAIL / 84) * math.sqrt(50 / 4)
    assert not summed(np.zeros((50, 42)), SPEC).any()


def test_noise_of_a_rotated_sum_has_the_claimed_deviation_in_every_entry():
    spec = replace(SPEC, length=20_000, noise_multiplier=1.5)
    result = summed(np.zeros((20, spec.length)), spec, 3)
    spread = stats.norm.isf(P_FAIL / 2) * math.sqrt(2 / spec.length)
    for part in (result[:3616], result[3616:16384], result[16384:]):  # by how many blocks an entry lies in
        width = spread * math.sqrt(spec.length / part.size)
        assert 1 - width < part.var() / (1.5 * spec.clip) ** 2 < 1 + width


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("multiplier", [0.0, 2.0])
def test_bits_are_as_few_as_the_wrap_bound_allows(rotated, multiplier):
    spec = replace(SPEC, length=4096, scale=4096.0, noise_multiplier=multiplier, rotated=rotated)
    few = replace(spec, bits=spec.least_bits)
    assert few.wrap_probability <= MAX_WRAP
    assert few.sensitivity == spec.sensitivity
    with pytest.raises(PrivacyError, match=f"{few.bits - 1} bits could wrap around, {few.bits} cannot"):
        replace(few, bits=few.bits - 1)


def test_the_wrap_bound_by_hand():
    spec = replace(SPEC, length=1024, noise_multiplier=0.0)
    spread = 50 * 128 / 32  # norm of the whole sum over the root of the block
    room = spread * math.sqrt(2 * math.log(2 * 1024 * 2**40)) + 50 + 1
    assert spec.least_bits == math.ceil(math.log2(room)) + 1
    plain = replace(spec, rotated=False, bits=14)
    assert (plain.wrap_probability, plain.least_bits) == (0.0, 14)  # 50 × 128 = 6400 < 8191
    noisy = replace(plain, noise_multiplier=1.0, min_survivors=50)
    assert noisy.wrap_probability == pytest.approx(1024 * 2 * math.exp(-((8191 - 6400) ** 2) / (2 * 128**2)))


def test_rotation_takes_fewer_bits_and_carries_the_worst_sum():
    """All phones put their whole clip into one entry."""
    spec = replace(SPEC, length=4096, scale=128.0)
    plain, spec = (replace(s, bits=s.least_bits) for s in (replace(spec, rotated=False), spec))
    assert spec.bits == plain.bits - 3
    vectors = np.zeros((50, 4096))
    vectors[:, 17] = 2.0
    error = summed(vectors, spec) - vectors.sum(0)
    assert np.abs(error).max() < stats.norm.isf(P_FAIL / 8192) * math.sqrt(50 / 4) / spec.scale


def test_rotation_is_on_the_wire_and_in_the_digest():
    assert SumFields.of(SPEC).spec() == SPEC
    assert SPEC.digest != replace(SPEC, rotated=False).digest
    assert not SumFields.model_validate_json(
        SumFields.of(SPEC).model_dump_json().replace(',"rotated":true', "")
    ).rotated
