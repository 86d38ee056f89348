"""Distances: cases worked by hand, bounds and symmetry."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcaptor.common.distances import js_divergence, normalise
from fedcaptor.common.errors import DataError

COUNTS = st.lists(st.floats(0, 1e300), min_size=1, max_size=12)


def test_normalise_by_hand():
    np.testing.assert_allclose(normalise([3, 1, 0], 0), [0.75, 0.25, 0])
    np.testing.assert_allclose(normalise([3, 1, 0], 1), [4 / 7, 2 / 7, 1 / 7])
    np.testing.assert_allclose(normalise([0, 0, 0, 0], 0), [0.25] * 4)
    np.testing.assert_allclose(normalise(np.array([5e-324, 5e-324]), 0), [0.5, 0.5])


def test_divergence_by_hand():
    assert js_divergence([1, 0], [0, 1]) == 1
    assert js_divergence([0.25, 0.75], [0.25, 0.75]) == 0
    # mean (3/4, 1/4): half of log2(4/3), and half of 1/2 log2(2/3) + 1/2 log2(2)
    by_hand = 0.5 * np.log2(4 / 3) + 0.5 * (0.5 * np.log2(2 / 3) + 0.5)
    assert js_divergence([1, 0], [0.5, 0.5]) == pytest.approx(by_hand)


@given(COUNTS, st.floats(0, 1e300))
def test_normalise_gives_a_distribution_in_the_order_of_the_counts(counts, smoothing):
    shares = normalise(counts, smoothing)
    assert shares.dtype == np.float64
    assert shares.sum() == pytest.approx(1)
    assert (np.diff(shares[np.argsort(counts, kind="stable")]) >= 0).all()


@given(st.integers(1, 12).flatmap(lambda k: st.tuples(*[st.lists(st.floats(0, 1e6), min_size=k, max_size=k)] * 2)))
def test_divergence_is_symmetric_and_in_bounds(pair):
    p, q = (normalise(counts, 0) for counts in pair)
    found = js_divergence(p, q)
    assert 0 <= found <= 1
    assert found == pytest.approx(js_divergence(q, p), abs=1e-12)
    assert js_divergence(p, p) == 0
    disjoint = js_divergence(np.r_[p, np.zeros(q.size)], np.r_[np.zeros(p.size), q])
    assert disjoint == pytest.approx(1)


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        ([1.0], [0.5, 0.5], "p has 1 entries and q 2"),
        ([0.5, 0.4], [0.5, 0.5], "p sums to 0.9"),
        ([0.5, 0.5], [1.5, -0.5], "q holds an entry that is negative"),
        ([np.nan, 1.0], [0.5, 0.5], "p holds an entry"),
        ([[1.0]], [1.0], r"p has shape \(1, 1\)"),
        ([], [], r"p has shape \(0,\)"),
    ],
)
def test_what_is_no_distribution_is_refused(p, q, message):
    with pytest.raises(DataError, match=message):
        js_divergence(p, q)


@pytest.mark.parametrize("smoothing", [-1.0, np.inf, np.nan])
def test_bad_smoothing_is_refused(smoothing):
    with pytest.raises(DataError, match="smoothing"):
        normalise([1, 2], smoothing)
