"""One answer private by itself: its ε is that of every output, its estimates have no bias, its bits are checked."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.local import LocalSpec
from fedcaptor.common.statistics.usage import cooccurrence, cooccurrence_matrix
from fedcaptor.server.local_design import best_local_spec

P_FAIL = 1e-6  # of each statistical test, for a correct draw
GRID = 2.0**-48


def output_probabilities(spec: LocalSpec, own: int | None) -> np.ndarray:
    """Of every output, by the definition: bits are independent."""
    one = np.full(spec.length, spec.absent)
    if own is not None:
        one[own] = spec.present
    outputs = np.array(list(itertools.product((0, 1), repeat=spec.length)))
    return np.where(outputs, one, 1 - one).prod(1)


@pytest.mark.parametrize("spec", [LocalSpec(3, 0.75, 0.25), LocalSpec(2, 0.5, 0.125), best_local_spec(3, 4.0)])
def test_epsilon_is_the_largest_log_ratio_over_all_outputs_and_answers(spec):
    found = [output_probabilities(spec, own) for own in [None, *range(spec.length)]]
    assert all(math.isclose(p.sum(), 1) for p in found)
    ratios = [np.log(p / q).max() for p, q in itertools.permutations(found, 2)]
    assert max(ratios) == pytest.approx(spec.epsilon, abs=1e-12)  # reached: no smaller ε is true


def test_epsilon_by_hand():
    assert LocalSpec(5, 0.5, 0.25).epsilon == pytest.approx(math.log(3))  # odds 1 against odds 1/3
    assert LocalSpec(5, 0.75, 0.25).epsilon == pytest.approx(2 * math.log(3))


@given(st.integers(2, 1024), st.floats(0.1, 20))
def test_the_optimised_answer_spends_epsilon_and_no_more(classes, epsilon):
    spec = best_local_spec(classes, epsilon)
    assert epsilon * (1 - 1e-5) - 1e-5 < spec.epsilon <= epsilon + 1e-12
    assert (spec.present / GRID).is_integer()
    assert (spec.absent / GRID).is_integer()


@pytest.mark.parametrize(("classes", "epsilon"), [(3, 1.0), (10, 8.0), (100, 4.0)])
def test_no_other_probabilities_have_less_variance(classes, epsilon):
    best, pairs = best_local_spec(classes, epsilon), classes * (classes + 1) // 2

    def variance(p: float, q: float) -> float:
        return (p * (1 - p) + (pairs - 1) * q * (1 - q)) / (p - q) ** 2

    for q in np.geomspace(1e-6, 0.45, 300):
        odds = q / (1 - q) * math.exp(epsilon)
        assert variance(best.present, best.absent) <= variance(odds / (1 + odds), q) * (1 + 1e-6)


def test_many_pairs_give_the_half_of_unary_encoding():
    spec = best_local_spec(1000, 2.0)
    assert spec.present == pytest.approx(0.5, abs=0.01)  # Wang et al. 2017
    assert spec.absent == pytest.approx(1 / (math.exp(2) + 1), rel=0.02)


def drawn(spec: LocalSpec, usage: np.ndarray, phones: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([np.unpackbits(spec.draw(usage, rng), count=spec.length) for _ in range(phones)])


def test_pairs_come_as_often_as_two_draws_and_bits_as_often_as_they_should():
    """Each bit's count is binomial; a normal bound at P_FAIL over all bits."""
    spec, usage, phones = best_local_spec(4, 3.0), np.array([0.5, 0.0, 0.2, 0.3]), 8_000
    rows, columns = np.triu_indices(4)
    pair = np.where(rows == columns, 1, 2) * usage[rows] * usage[columns]
    expected = spec.absent + (spec.present - spec.absent) * pair
    found = drawn(spec, usage, phones, 1).mean(0)
    bound = math.sqrt(2 * math.log(2 * spec.length / P_FAIL)) / (2 * math.sqrt(phones))  # Hoeffding
    assert np.abs(found - expected).max() < bound
    assert bound < (spec.present - spec.absent) * 0.2  # else it would see nothing


def test_the_estimated_cooccurrence_has_no_bias():
    """The mean of 4,000 answers' estimates, each entry within a Hoeffding bound at P_FAIL of u·uᵀ."""
    spec, phones = best_local_spec(5, 6.0), 4_000
    usage = np.array([0.6, 0.3, 0.1, 0.0, 0.0])
    estimate = spec.cooccurrence(drawn(spec, usage, phones, 2).sum(0).astype(float), phones) / phones
    truth = cooccurrence(usage)
    bound = math.sqrt(math.log(2 * spec.length / P_FAIL) / (2 * phones)) / (spec.present - spec.absent)
    assert np.abs(estimate - truth).max() < bound
    np.testing.assert_allclose(cooccurrence_matrix(truth, 5), np.outer(usage, usage), atol=1e-12)
    assert bound < truth.max() / 4


def test_exact_expectations_give_back_the_cooccurrence():
    spec, usage = best_local_spec(4, 2.0), np.array([0.4, 0.4, 0.2, 0.0])
    rows, columns = np.triu_indices(4)
    pair = np.where(rows == columns, 1, 2) * usage[rows] * usage[columns]
    ones = 50 * (spec.absent + (spec.present - spec.absent) * pair)
    np.testing.assert_allclose(spec.cooccurrence(ones, 50), 50 * cooccurrence(usage), atol=1e-9)


def test_a_shares_deviation_is_what_answers_show():
    """Standard deviation over 3,000 phones of what one answer says of a class: within 10 %."""
    spec = best_local_spec(10, 4.0)
    usage = np.full(10, 0.1)
    bits = drawn(spec, usage, 3_000, 3).astype(float)
    weight = np.array(
        [[1.0 if i == j == 0 else 0.5 * (0 in (i, j)) for i, j in zip(*np.triu_indices(10), strict=True)]]
    )
    shares = ((bits - spec.absent) / (spec.present - spec.absent)) @ weight[0]
    assert shares.std() == pytest.approx(spec.share_deviation(1), rel=0.1)
    assert spec.share_deviation(100) == pytest.approx(spec.share_deviation(1) / 10)


def test_a_phone_that_met_nothing_sends_noise_alone():
    spec = LocalSpec(4, 0.75, 0.25)
    found = drawn(spec, np.zeros(4), 4_000, 4).mean(0)
    assert np.abs(found - 0.25).max() < math.sqrt(math.log(2 * spec.length / P_FAIL) / (2 * 4_000))


def test_the_last_class_alone_is_drawn_whole():
    spec = LocalSpec(3, 1 - GRID, GRID)
    for own, pair in ((0, 0), (2, 5)):
        assert drawn(spec, np.eye(3)[own], 1, 5)[0].nonzero()[0].tolist() == [pair]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (np.zeros(3, np.uint8), "must be 15 packed bits"),
        (np.zeros((1, 2), np.uint8), "must be 15 packed bits"),
        (np.zeros(2, np.uint32), "must be 15 packed bits"),
        (np.array([0, 1], np.uint8), "ones behind its 15 bits"),
    ],
)
def test_what_is_no_answer_is_refused(answer, why):
    spec = LocalSpec(5, 0.5, 0.25)
    with pytest.raises(PrivacyError, match=why):
        spec.check(answer)
    spec.check(np.array([255, 254], np.uint8))
    LocalSpec(15, 0.5, 0.25).check(np.full(15, 255, np.uint8))  # 120 bits fill their bytes


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ((1, 0.5, 0.25), r"classes is 1, must lie in 2\.\.1024"),
        ((5, 0.25, 0.5), "0 < absent < present < 1"),
        ((5, 0.5, 0.5), "0 < absent < present < 1"),
        ((5, 1.0, 0.5), "0 < absent < present < 1"),
        ((5, 0.5, 0.0), "0 < absent < present < 1"),
        ((5, 0.3, 0.25), r"present is 0\.3, must be a multiple"),
        ((5, math.nan, 0.25), "multiple"),
    ],
)
def test_answers_that_protect_nothing_are_refused(fields, why):
    with pytest.raises(PrivacyError, match=why):
        LocalSpec(*fields)
