"""Second-order channel selection: optimal brain surgeon on whole channels (Hassibi & Stork 1993).

On images of the target classes alone, most channels of a layer are nearly linear combinations of a few. Removing a
channel costs only what the remaining ones cannot reconstruct of it, weighted by the sensitivity of the target classes'
outputs to that error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Floats, Indices


@dataclass(frozen=True, eq=False)
class ConsumerStatistics:
    """Hold the second-order statistics of one consumer that reads a group of C channels.

    Attributes:
        covariance: [C, C], of the channels at the consumer's input, on images of the target classes.
        gram: [C, C], Wᵀ·F·W summed over kernel taps, F [O, O] the Gauss-Newton matrix of the target classes' logits at
            the consumer's outputs, summed over output positions: the loss of a reconstruction error e is eᵀ·gram·e.
    """

    covariance: Floats
    gram: Floats


@dataclass(frozen=True, eq=False)
class PruningCurve:
    """Say in which order a group's channels are removed, and what each removal costs.

    Attributes:
        order: [C], channels from first to last removed.
        cost: [C], loss that each removal adds, never negative; in one unit for all groups of a network.
    """

    order: Indices
    cost: Floats

    def kept(self, count: int) -> Indices:
        """Return the `count` channels that stay longest, sorted."""
        return np.sort(self.order[len(self.order) - count :])

    def loss(self, count: int, smaller: int) -> float:
        """Sum the loss that going on from `count` to `smaller` kept channels adds."""
        removed = len(self.order) - count
        return float(self.cost[removed : removed + count - smaller].sum())


def ridge_of(covariance: Floats, ridge: float) -> float:
    """Scale a ridge to the mean variance; a floor keeps dead layers invertible."""
    return ridge * float(np.trace(covariance)) / len(covariance) + 1e-8


def pruning_curve(
    statistics: Sequence[ConsumerStatistics],
    ridge: float = 0.01,
    *,
    importance: Floats | None = None,
    start: Indices | None = None,
) -> PruningCurve:
    """Rank a group's C channels by backward elimination, O(C³) a consumer.

    Removing j costs gram_jj / (Σ + λ)⁻¹_jj, summed over consumers; then j's weights move to the others by the best
    linear reconstruction (a rank-two update of gram) and the inverse is down-dated.

    Args:
        statistics: Those of each consumer of the group.
        ridge: λ in units of the mean variance.
        importance: [C], multiplies the costs.
        start: Channels outside it are removed first and cost nothing: they are already gone.
    """
    channels = len(statistics[0].covariance)
    consumers = [_Elimination(of_consumer, ridge) for of_consumer in statistics]
    alive = np.ones(channels, dtype=bool)
    factor = np.ones(channels) if importance is None else importance
    gone = np.zeros(channels, dtype=bool)
    if start is not None:
        gone = ~np.isin(np.arange(channels), start)
    order, cost = np.empty(channels, dtype=np.int64), np.empty(channels)
    for step in range(channels):
        total = np.sum([consumer.costs() for consumer in consumers], 0)
        candidates = alive & gone if (alive & gone).any() else alive
        j = int(np.argmin(np.where(candidates, total * factor, np.inf)))
        order[step], cost[step], alive[j] = j, 0.0 if gone[j] else max(float(total[j] * factor[j]), 0.0), False
        for consumer in consumers:
            consumer.remove(j, alive)
    return PruningCurve(order, cost)


class _Elimination:
    """Keep inverse and gram of one consumer while channels are removed; their entries of removed channels mean nothing.

    Removals are collected and applied many at a time, as matrix products: a layer of a thousand channels would spend
    four fifths of its time on reading both matrices anew for each. The diagonals are always up to date.
    """

    PENDING = 64

    def __init__(self, statistics: ConsumerStatistics, ridge: float) -> None:
        channels = len(statistics.covariance)
        regular = statistics.covariance + ridge_of(statistics.covariance, ridge) * np.eye(channels)
        self.inverse, self.gram = np.linalg.inv(regular), np.array(statistics.gram, dtype=np.float64)
        self.pivots, self.losses = self.inverse.diagonal().copy(), self.gram.diagonal().copy()
        # inverse − UᵀU and gram + SᵀM + MᵀS are the present ones
        self.u, self.s, self.m = np.empty((3, min(self.PENDING, channels), channels))
        self.pending = 0

    def costs(self) -> Floats:
        """Return the loss [C] of removing each channel next."""
        return self.losses / np.maximum(self.pivots, 1e-12)

    def remove(self, j: int, alive: npt.NDArray[np.bool_]) -> None:
        """Remove channel j; its weights move to those still `alive`."""
        now = slice(self.pending)
        row = self.inverse[j] - self.u[now, j] @ self.u[now]
        column = self.gram[j] + self.s[now, j] @ self.m[now] + self.m[now, j] @ self.s[now]
        pivot = max(float(row[j]), 1e-12)
        share = np.where(alive, -row / pivot, 0.0)
        moved, scaled = column + column[j] / 2 * share, row / math.sqrt(pivot)
        self.losses += 2 * share * moved
        self.pivots -= np.square(scaled)
        self.u[self.pending], self.s[self.pending], self.m[self.pending] = scaled, share, moved
        self.pending += 1
        if self.pending == len(self.u) < len(alive):
            self._apply()

    def _apply(self) -> None:
        """Apply the collected removals to both matrices."""
        self.inverse -= self.u.T @ self.u
        crossed = self.s.T @ self.m
        self.gram += crossed + crossed.T
        self.pending = 0
