"""Second-order channel selection: optimal brain surgeon on whole channels (Hassibi & Stork 1993).

Seen on the needed classes alone, most channels of a layer are nearly linear combinations of a few. Removing a channel
costs only what the remaining ones cannot reconstruct of it, weighted by how much the needed outputs feel it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Floats, Indices


@dataclass(frozen=True, eq=False)
class Reading:
    """How one consumer reads a group of C channels.

    `covariance` [C, C]: of the channels at the consumer's input, on images of the needed classes.
    `gram` [C, C]: Wᵀ·F·W summed over kernel taps, F [O, O] the Gauss-Newton matrix of the needed logits at the
    consumer's outputs, summed over output positions: the loss of a reconstruction error e is eᵀ·gram·e.
    """

    covariance: Floats
    gram: Floats


@dataclass(frozen=True, eq=False)
class RemovalCurve:
    """`order` [C]: channels from first to last removed. `cost` [C]: loss that each removal adds, never negative."""

    order: Indices
    cost: Floats

    def kept(self, count: int) -> Indices:
        """The `count` channels that stay longest, sorted."""
        return np.sort(self.order[len(self.order) - count :])


def ridge_of(covariance: Floats, ridge: float) -> float:
    """Ridge in units of the mean variance; a floor keeps dead layers invertible."""
    return ridge * float(np.trace(covariance)) / len(covariance) + 1e-8


def removal_curve(
    readings: Sequence[Reading], ridge: float = 0.01, *, importance: Floats | None = None, start: Indices | None = None
) -> RemovalCurve:
    """Backward elimination over all C channels of a group, O(C³) a consumer.

    Removing j costs gram_jj / (Σ + λ)⁻¹_jj, summed over consumers; then j's weights move to the others by the best
    linear reconstruction (a rank-two update of gram) and the inverse is down-dated. `importance` [C] multiplies the
    costs. Channels outside `start` go first and count nothing: they are already gone.
    """
    channels = len(readings[0].covariance)
    consumers = [_Elimination(reading, ridge) for reading in readings]
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
    return RemovalCurve(order, cost)


class _Elimination:
    """Inverse and gram of one consumer while channels go; what they hold of removed channels means nothing.

    Removals wait and are applied many at a time, as matrix products: a layer of a thousand channels would spend four
    fifths of its time on reading both matrices anew for each. The diagonals are always up to date.
    """

    WAITING = 64

    def __init__(self, reading: Reading, ridge: float) -> None:
        channels = len(reading.covariance)
        regular = reading.covariance + ridge_of(reading.covariance, ridge) * np.eye(channels)
        self.inverse, self.gram = np.linalg.inv(regular), np.array(reading.gram, dtype=np.float64)
        self.pivots, self.losses = self.inverse.diagonal().copy(), self.gram.diagonal().copy()
        # inverse − UᵀU and gram + SᵀM + MᵀS are the present ones
        self.u, self.s, self.m = np.empty((3, min(self.WAITING, channels), channels))
        self.waiting = 0

    def costs(self) -> Floats:
        """Of removing each channel [C] next."""
        return self.losses / np.maximum(self.pivots, 1e-12)

    def remove(self, j: int, alive: npt.NDArray[np.bool_]) -> None:
        """Remove channel j; its weights move to those still `alive`."""
        now = slice(self.waiting)
        row = self.inverse[j] - self.u[now, j] @ self.u[now]
        column = self.gram[j] + self.s[now, j] @ self.m[now] + self.m[now, j] @ self.s[now]
        pivot = max(float(row[j]), 1e-12)
        share = np.where(alive, -row / pivot, 0.0)
        moved, scaled = column + column[j] / 2 * share, row / math.sqrt(pivot)
        self.losses += 2 * share * moved
        self.pivots -= np.square(scaled)
        self.u[self.waiting], self.s[self.waiting], self.m[self.waiting] = scaled, share, moved
        self.waiting += 1
        if self.waiting == len(self.u) < len(alive):
            self._apply()

    def _apply(self) -> None:
        self.inverse -= self.u.T @ self.u
        crossed = self.s.T @ self.m
        self.gram += crossed + crossed.T
        self.waiting = 0
