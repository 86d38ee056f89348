"""Channel selection against least squares by brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcaptor.common import selection
from fedcaptor.common.selection import ConsumerStatistics, pruning_curve, ridge_of

RIDGE = 1e-9  # nothing but least squares


def statistics(
    rng: np.random.Generator, channels: int, outputs: int = 4
) -> tuple[ConsumerStatistics, np.ndarray, np.ndarray]:
    """Consumer statistics with the observations [R, C] and weights [O, C] that it is made of."""
    mixing = np.linalg.qr(rng.normal(size=(channels, channels)))[0] * rng.uniform(0.5, 2, channels)
    x = rng.normal(size=(400, channels)) @ mixing @ np.linalg.qr(rng.normal(size=(channels, channels)))[0]
    w = rng.normal(size=(outputs, channels))
    return ConsumerStatistics(np.cov(x, rowvar=False, bias=True), w.T @ w), x - x.mean(0), w


def loss_of(x: np.ndarray, w: np.ndarray, kept: list[int]) -> float:
    """Mean squared error of the outputs when `kept` reconstruct all channels of centred `x` as well as they can."""
    best = np.linalg.lstsq(x[:, kept], x, rcond=None)[0]
    return float(np.square((x - x[:, kept] @ best) @ w.T).sum(1).mean())


def test_uncorrelated_channels_by_hand() -> None:
    """Removing channel j costs its variance times the squared weights that read it."""
    curve = pruning_curve([ConsumerStatistics(np.diag([4.0, 1.0, 9.0]), np.diag([0.5, 3.0, 0.1]))], RIDGE)
    assert curve.order.tolist() == [2, 0, 1]
    np.testing.assert_allclose(curve.cost, [0.9, 2.0, 3.0], rtol=1e-6)
    assert curve.kept(2).tolist() == [0, 1]
    assert curve.kept(3).tolist() == [0, 1, 2]


@given(st.integers(0, 10**6), st.integers(2, 3))
def test_the_first_removal_is_the_cheapest_that_least_squares_knows(seed: int, channels: int) -> None:
    read, x, w = statistics(np.random.default_rng(seed), channels)
    every = set(range(channels))
    losses = [loss_of(x, w, sorted(every - {j})) for j in range(channels)]
    curve = pruning_curve([read], RIDGE)
    assert curve.cost[0] == pytest.approx(min(losses), rel=1e-3)
    assert losses[curve.order[0]] == pytest.approx(min(losses), rel=1e-3)


def test_costs_are_what_least_squares_loses_step_by_step() -> None:
    """Outputs' errors of later steps are measured on what the earlier ones left, so costs add up to the total loss
    where each reconstruction is the best one given the last.
    """
    read, x, w = statistics(np.random.default_rng(3), 3)
    curve = pruning_curve([read], RIDGE)
    first, second = int(curve.order[0]), int(curve.order[1])
    kept = sorted({0, 1, 2} - {first})
    moved = w @ np.linalg.lstsq(x[:, kept], x, rcond=None)[0].T  # the outputs as the other two make them
    after = loss_of(x[:, kept], moved, [kept.index(c) for c in kept if c != second])
    assert curve.cost[1] == pytest.approx(after, rel=1e-4)
    last = loss_of(x, w, [int(curve.order[2])])
    assert curve.cost[:2].sum() == pytest.approx(last, rel=1e-4)


def test_a_duplicate_costs_nothing_and_goes_first() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)) * [3, 1, 2, 5]
    x[:, 2] = x[:, 0]
    w = rng.normal(size=(6, 4)) + 2
    curve = pruning_curve([ConsumerStatistics(np.cov(x, rowvar=False), w.T @ w)], 1e-6)
    assert curve.order[0] in (0, 2)
    assert curve.cost[0] < 1e-4 * curve.cost[1]
    assert {0, 2} - {int(curve.order[0])} <= set(curve.kept(3).tolist())


def test_costs_of_several_consumers_add_up() -> None:
    first, second = statistics(np.random.default_rng(1), 2)[0], statistics(np.random.default_rng(2), 2)[0]
    both = pruning_curve([first, second], RIDGE)
    alone = []
    for read in (first, second):
        inverse = np.linalg.inv(read.covariance)
        alone.append(np.diag(read.gram) / np.diag(inverse))
    assert both.order[0] == np.sum(alone, 0).argmin()
    assert both.cost[0] == pytest.approx(np.sum(alone, 0).min(), rel=1e-5)


def test_what_is_already_gone_goes_first_and_counts_nothing() -> None:
    read, _, _ = statistics(np.random.default_rng(4), 5)
    curve = pruning_curve([read], start=np.array([0, 3, 4]))
    assert set(curve.order[:2].tolist()) == {1, 2}
    np.testing.assert_array_equal(curve.cost[:2], 0)
    assert (curve.cost[2:] > 0).all()
    assert set(curve.kept(3).tolist()) == {0, 3, 4}


def test_importance_multiplies_costs() -> None:
    read = ConsumerStatistics(np.diag([1.0, 1.0]), np.diag([1.0, 1.5]))
    assert pruning_curve([read], RIDGE).order.tolist() == [0, 1]
    weighed = pruning_curve([read], RIDGE, importance=np.array([4.0, 2.0]))
    assert weighed.order.tolist() == [1, 0]
    np.testing.assert_allclose(weighed.cost, [3, 4], rtol=1e-6)


@given(st.integers(0, 10**6), st.integers(1, 8), st.booleans())
def test_every_curve_is_an_order_of_all_channels(seed: int, channels: int, dead: bool) -> None:
    rng = np.random.default_rng(seed)
    covariance = np.zeros((channels, channels))
    if not dead:
        covariance = np.atleast_2d(np.cov(rng.normal(size=(3, channels)), rowvar=False))  # of low rank
    w = rng.normal(size=(2, channels))
    curve = pruning_curve([ConsumerStatistics(covariance, w.T @ w)])
    assert sorted(curve.order.tolist()) == list(range(channels))
    assert np.isfinite(curve.cost).all()
    assert (curve.cost >= 0).all()


def test_a_dead_layer_stays_invertible() -> None:
    assert ridge_of(np.zeros((2, 2)), 0.01) > 0


def test_all_pairs_of_a_small_layer() -> None:
    """Greedy elimination finds the best pair of three here; brute force over all pairs says so."""
    read, x, w = statistics(np.random.default_rng(7), 3)
    best = min(combinations(range(3), 2), key=lambda pair: loss_of(x, w, list(pair)))
    assert tuple(pruning_curve([read], RIDGE).kept(2).tolist()) == best


def one_by_one(read: ConsumerStatistics, ridge: float) -> tuple[list[int], list[float]]:
    """Backward elimination as it is written down: matrices shrink, the inverse is taken anew each time."""
    alive, gram, order, costs = list(range(len(read.gram))), read.gram, [], []
    regular = read.covariance + ridge_of(read.covariance, ridge) * np.eye(len(read.gram))
    while alive:
        inverse = np.linalg.inv(regular[np.ix_(alive, alive)])
        loss = np.diag(gram) / np.diag(inverse)
        j = int(loss.argmin())
        order.append(alive.pop(j))
        costs.append(float(loss[j]))
        share = np.delete(-inverse[j] / inverse[j, j], j)
        column, own = np.delete(gram[j], j), gram[j, j]
        gram = np.delete(np.delete(gram, j, 0), j, 1)
        gram = gram + np.outer(share, column) + np.outer(column, share) + own * np.outer(share, share)
    return order, costs


@pytest.mark.parametrize("channels", [2, 3, 4, 7, 8])
def test_removals_that_wait_are_not_forgotten(monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    monkeypatch.setattr(selection._Elimination, "PENDING", 3)
    read = statistics(np.random.default_rng(channels), channels)[0]
    order, costs = one_by_one(read, RIDGE)
    curve = pruning_curve([read], RIDGE)
    assert curve.order.tolist() == order
    np.testing.assert_allclose(curve.cost, costs, rtol=1e-8)
