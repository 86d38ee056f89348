"""Second-order channel selection: optimal brain surgeon on whole channels (Hassibi & Stork 1993).

Seen on the needed classes alone, most channels of a layer are nearly linear combinations of a few. Removing a channel
costs only what the remaining ones cannot reconstruct of it, weighted by how much the needed outputs feel it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg.blas import dger

from common.plan import Indices

Floats = npt.NDArray[np.float64]


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
    inverses: list[Floats] = [
        np.asfortranarray(np.linalg.inv(r.covariance + ridge_of(r.covariance, ridge) * np.eye(channels)), np.float64)
        for r in readings
    ]
    grams = [np.array(r.gram, dtype=np.float64, order="F") for r in readings]
    alive = np.ones(channels, dtype=bool)
    factor = np.ones(channels) if importance is None else importance
    gone = np.zeros(channels, dtype=bool)
    if start is not None:
        gone = ~np.isin(np.arange(channels), start)
    order, cost = np.empty(channels, dtype=np.int64), np.empty(channels)
    for step in range(channels):
        total = np.zeros(channels)
        for inverse, gram in zip(inverses, grams, strict=True):
            total += np.diag(gram) / np.maximum(np.diag(inverse), 1e-12)
        candidates = alive & gone if (alive & gone).any() else alive
        j = int(np.argmin(np.where(candidates, total * factor, np.inf)))
        order[step], cost[step], alive[j] = j, 0.0 if gone[j] else max(float(total[j] * factor[j]), 0.0), False
        for inverse, gram in zip(inverses, grams, strict=True):
            _eliminate(inverse, gram, j, alive)
    return RemovalCurve(order, cost)


def _eliminate(inverse: Floats, gram: Floats, j: int, alive: npt.NDArray[np.bool_]) -> None:
    """Remove channel j in place (both in Fortran's order); rows of removed channels are left at zero."""
    pivot = max(float(inverse[j, j]), 1e-12)
    row, column = inverse[:, j].copy(), gram[:, j].copy()
    share = np.where(alive, -row / pivot, 0.0)
    moved = column + column[j] / 2 * share
    dger(1.0, share, moved, a=gram, overwrite_a=1)
    dger(1.0, moved, share, a=gram, overwrite_a=1)
    dger(-1 / pivot, row, row, a=inverse, overwrite_a=1)
    for matrix in (gram, inverse):
        matrix[j, :] = 0.0
        matrix[:, j] = 0.0
