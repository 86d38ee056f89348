"""Sums, noise and accounting. Each statistical bound states the probability that a correct sampler fails it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.noise import discrete_gaussian, system_generator
from fedcaptor.common.privacy.sums import SumSpec, encode
from fedcaptor.common.privacy.zcdp import epsilon, noise_multiplier, share_gap, sum_zcdp
from fedcaptor.server.plain_sum import PlainAggregator

P_FAIL = 1e-6  # of each statistical assertion
BASE = SumSpec("usage", 8, clip=2.0, scale=1024.0, noise_multiplier=0.0, cohort=50, min_survivors=20, min_cohort=20)


def total(vectors, spec, rng):
    aggregator = PlainAggregator(spec)
    for vector in vectors:
        aggregator.add(encode(np.asarray(vector), spec, rng))
    return aggregator.finish()


@pytest.mark.parametrize("sigma2", [0.3, 1.0, 7.5, 400.0])
@pytest.mark.parametrize("source", ["seeded", "system"])
def test_sampler_follows_the_discrete_gaussian(sigma2, source):
    rng = np.random.default_rng(7) if source == "seeded" else system_generator()
    n = 100_000
    x = discrete_gaussian(sigma2, n, rng)
    assert x.dtype == np.int64
    support = np.arange(-200, 201)
    mass = np.exp(-(support**2) / (2 * sigma2))
    mass /= mass.sum()
    bins = support[n * mass >= 20]
    expected = np.append(n * mass[np.isin(support, bins)], 0)
    seen = np.array([*((x == b).sum() for b in bins), 0])
    expected[-1], seen[-1] = n - expected.sum(), n - seen.sum()
    if expected[-1] < 5:  # too rare for a cell of its own: join it to the next rarest
        expected, seen = expected[:-1], np.append(seen[:-2], seen[-2:].sum())
        expected *= n / expected.sum()
    assert stats.chisquare(seen, expected).pvalue > P_FAIL
    variance = float((mass * support**2).sum())
    z = stats.norm.isf(P_FAIL / 2)
    assert abs(x.mean()) < z * math.sqrt(variance / n)
    spread = float((mass * support**4).sum()) - variance**2
    assert abs((x.astype(float) ** 2).mean() - variance) < z * math.sqrt(spread / n)


def test_system_noise_takes_its_bits_from_the_operating_system(monkeypatch):
    monkeypatch.setattr("fedcaptor.common.privacy.noise.os.urandom", lambda n: bytes(np.random.default_rng(1).bytes(n)))
    first, second = (discrete_gaussian(9.0, 100, system_generator()) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_sampler_edges():
    rng = np.random.default_rng(0)
    assert not discrete_gaussian(0.0, (2, 3), rng).any()
    assert discrete_gaussian(4.0, (2, 3), rng).shape == (2, 3)
    for bad in (-1.0, math.nan, math.inf, 2.0**81):
        with pytest.raises(PrivacyError, match="variance"):
            discrete_gaussian(bad, 3, rng)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), phones=st.integers(20, 50), bits=st.sampled_from([24, 32]))
def test_sum_is_exact_without_noise(seed, phones, bits):
    rng = np.random.default_rng(seed)
    spec = replace(BASE, bits=bits)
    vectors = rng.integers(-700, 701, (phones, 8)) / 1024  # whole quanta within the clip
    np.testing.assert_array_equal(total(vectors, spec, rng), vectors.sum(0))


@settings(max_examples=200)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=8, max_size=8))
def test_encoding_never_exceeds_the_joint_clip(values):
    quanta = encode(np.array(values), BASE, np.random.default_rng(0)).view(np.int32).astype(np.int64)
    assert int(quanta @ quanta) <= BASE.sensitivity**2
    assert np.all(np.sign(quanta) * np.sign(values) >= 0)


def test_negative_sums_come_back_through_the_modulus():
    spec = replace(BASE, bits=20, scale=1000.0)
    vector = np.full(8, -0.5)
    reply = encode(vector, spec, np.random.default_rng(0))
    assert reply.tolist() == [2**20 - 500] * 8
    np.testing.assert_array_equal(total([vector] * 50, spec, np.random.default_rng(0)), [-25.0] * 8)


@pytest.mark.parametrize("bad", [np.full(8, np.nan), np.full(8, np.inf), np.zeros(7), np.zeros((8, 1))])
def test_encode_refuses_bad_vectors(bad):
    with pytest.raises(PrivacyError):
        encode(bad, BASE, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"min_cohort": 19}, "min_cohort"),
        ({"cohort": 19}, "cohort"),
        ({"min_survivors": 51}, "min_survivors"),
        ({"min_survivors": 0}, "min_survivors"),
        ({"length": 0}, "length"),
        ({"length": 1 << 25}, "length"),
        ({"clip": 0.0}, "clip"),
        ({"clip": math.nan}, "clip"),
        ({"scale": math.inf}, "scale"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"bits": 33}, "bits"),
        ({"scale": 2.0**25}, "wrap"),
        ({"noise_multiplier": 1e6}, "wrap"),
        ({"name": ""}, "name"),
    ],
)
def test_unsafe_specs_are_refused(change, word):
    with pytest.raises(PrivacyError, match=word):
        replace(BASE, **change)


def test_small_cohorts_and_digest():
    small = replace(BASE, cohort=3, min_survivors=2, min_cohort=3, small_cohorts=True)
    assert small.digest != BASE.digest == replace(BASE).digest


def test_aggregator_refuses_few_many_and_malformed():
    zero = np.zeros(8, np.uint32)
    for spec, needed in ((BASE, 20), (replace(BASE, min_survivors=30), 30)):
        aggregator = PlainAggregator(spec)
        for _ in range(needed - 1):
            aggregator.add(zero)
        with pytest.raises(PrivacyError, match=f"at least {needed}"):
            aggregator.finish()
        aggregator.add(zero)
        assert aggregator.count == needed
        assert aggregator.finish().shape == (8,)
    for bad in (zero[:7], zero.astype(np.int64)):
        with pytest.raises(PrivacyError, match="expected uint32"):
            aggregator.add(bad)
    with pytest.raises(PrivacyError, match="bound"):
        PlainAggregator(replace(BASE, bits=20)).add(zero + np.uint32(2**20))
    full = PlainAggregator(BASE)
    for _ in range(50):
        full.add(zero)
    with pytest.raises(PrivacyError, match="duplicate"):
        full.add(zero)


def test_noise_of_the_sum_reaches_the_claim_with_the_fewest_survivors():
    spec = replace(BASE, length=20_000, noise_multiplier=1.5)
    result = total(np.zeros((20, spec.length)), spec, np.random.default_rng(3)) * spec.scale
    ratio = result.var() / spec.sigma**2
    spread = stats.norm.isf(P_FAIL / 2) * math.sqrt(2 / spec.length)
    assert 1 - spread < ratio < 1 + spread


def test_zcdp_by_hand():
    spec = replace(BASE, noise_multiplier=4.0)
    assert sum_zcdp(spec) == pytest.approx(1 / 32)  # tau vanishes at this scale
    rho, delta = 3 / 32, 1e-5
    orders = 1 + np.geomspace(1e-3, 1e6, 200_000)
    by_hand = rho * orders + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    figure = epsilon([spec] * 3, delta)
    assert figure == pytest.approx(by_hand.min(), rel=1e-4)
    assert figure < rho + 2 * math.sqrt(rho * math.log(1 / delta))


def test_tau_counts_when_shares_are_coarse():
    coarse = replace(BASE, scale=2.0, noise_multiplier=1.0, min_survivors=20)  # shares of variance 0.8
    tau = 10 * sum(math.exp(-2 * math.pi**2 * 0.8 * k / (k + 1)) for k in range(1, 20))
    assert share_gap(coarse.share_variance, 20) == pytest.approx(tau)
    expected = min(math.sqrt(1 + tau * 4), 1 + tau * math.sqrt(8)) ** 2 / 2
    assert sum_zcdp(coarse) == pytest.approx(expected)
    assert expected > 0.5
    with pytest.raises(PrivacyError, match="raise scale"):
        sum_zcdp(replace(coarse, scale=0.5))


def test_epsilon_falls_with_noise_and_rises_with_dishonest_phones():
    figures = [epsilon([replace(BASE, noise_multiplier=m)], 1e-5) for m in (0.5, 1.0, 2.0, 8.0)]
    assert figures == sorted(figures, reverse=True)
    assert math.isinf(epsilon([BASE], 1e-5))
    assert epsilon([], 1e-5) == 0
    noisy = replace(BASE, noise_multiplier=2.0)
    assert sum_zcdp(noisy, dishonest=0.1) == pytest.approx(sum_zcdp(noisy) * 20 / 15)  # 5 of 20 shares lost
    assert math.isinf(epsilon([noisy], 1e-5, dishonest=0.4))
    for delta in (0.0, 1.0):
        with pytest.raises(PrivacyError, match="delta"):
            epsilon([noisy], delta)


@pytest.mark.parametrize("target", [0.5, 2.0, 8.0])
def test_calibration_is_the_inverse_of_epsilon(target):
    specs = [replace(BASE, name=f"sum {i}") for i in range(5)]
    found = noise_multiplier(target, 1e-5, specs)
    figure = epsilon([replace(s, noise_multiplier=found) for s in specs], 1e-5)
    assert figure <= target
    assert figure == pytest.approx(target, rel=1e-6)
    assert noise_multiplier(target, 1e-5, 5) == pytest.approx(found, rel=1e-6)


def test_impossible_targets_are_refused():
    with pytest.raises(PrivacyError, match="wrap"):
        noise_multiplier(1e-5, 1e-9, [BASE] * 5)
    with pytest.raises(PrivacyError, match="out of reach"):
        noise_multiplier(1.0, 1e-5, [BASE], dishonest=0.5)
    for target, sums in ((0.0, 1), (math.nan, 1), (1.0, 0), (1.0, [])):
        with pytest.raises(PrivacyError):
            noise_multiplier(target, 1e-5, sums)
