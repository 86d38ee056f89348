"""Names of preference clusters that survive rounds: a cluster's place in a round changes when others are merged."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.optimize import linear_sum_assignment

from fedcaptor.common.arrays import Floats
from fedcaptor.common.distances import js_divergence

SAME = 0.5
"""Bits of divergence above which a centroid is another cluster's."""


def cluster_names(history: Iterable[Floats]) -> list[int]:
    """Number the clusters of the last round, given the centroids [K, classes] of every round so far.

    A cluster keeps its number while its centroid of the next round is the one paired with it: pairs are those of least
    divergence in all, and below `SAME`. A cluster that was merged away takes its number with it; a new one gets the
    next that was never used.
    """
    before: Floats | None = None
    names: list[int] = []
    unused = 0
    for centroids in history:
        kept = {} if before is None else _pairs(centroids, before)
        names = [names[kept[k]] if k in kept else -1 for k in range(len(centroids))]
        for k, name in enumerate(names):
            if name < 0:
                names[k], unused = unused, unused + 1
        before = centroids
    return names


def _pairs(now: Floats, before: Floats) -> dict[int, int]:
    now, before = (each / each.sum(1, keepdims=True) for each in (now, before))  # they come rounded
    bits = np.array([[js_divergence(a, b) for b in before] for a in now])
    rows, columns = linear_sum_assignment(bits)
    return {int(k): int(j) for k, j in zip(rows, columns, strict=True) if bits[k, j] <= SAME}
