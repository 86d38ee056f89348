"""Preference matrices say which filters serve which classes: [F, classes] over all prunable filters, group by group.

Numpy alone: phones and server compute the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Indices
from fedcaptor.common.groups import ChannelGroups

Matrix = npt.NDArray[np.floating[Any]]


def layer_slices(groups: ChannelGroups) -> list[slice]:
    """Find the rows of each prunable group in a matrix [F, …]."""
    ends = np.cumsum([0, *(group.channels for group in groups.prunable)])
    return [slice(int(start), int(stop)) for start, stop in pairwise(ends)]


def normalise(blocks: Sequence[Matrix]) -> npt.NDArray[np.float32]:
    """Stack blocks [channels, classes], one a group, with each column of each block scaled to unit L2 norm.

    A class gets the same say in every layer, and every class the same, however many images stood behind it. A column
    of zeros (an absent class) stays zero.
    """
    return np.concatenate([_unit_columns(np.asarray(block, dtype=np.float64)) for block in blocks]).astype(np.float32)


def _unit_columns(block: Matrix) -> Matrix:
    """Scale each column to unit L2 norm; a column of zeros stays zero."""
    largest = np.abs(block).max(0, keepdims=True, initial=0.0)
    block = np.divide(block, largest, out=np.zeros_like(block), where=largest > 0)  # squares of tiny numbers vanish
    length = np.linalg.norm(block, axis=0, keepdims=True)
    return np.divide(block, length, out=np.zeros_like(block), where=length > 0)


def cluster_means(matrix: Matrix, assignment: Indices, clusters: int) -> Matrix:
    """Average a matrix [F, classes] over the filters of each cluster: [clusters, classes], zero for an empty one."""
    total = np.zeros((clusters, matrix.shape[1]))
    np.add.at(total, assignment, matrix)
    members = np.bincount(assignment, minlength=clusters)
    return (total / np.maximum(members, 1)[:, None]).astype(matrix.dtype)


def share_out(pooled: Matrix, assignment: Indices, pictures: Matrix) -> Matrix:
    """Share a cluster's score for a class out among its filters: [clusters, classes] to [F, classes].

    Shares are in proportion to what `pictures` [F, classes] say of the filters; their mean stays the cluster's. A
    filter that is alone in its cluster gets the cluster's row.
    """
    positive = np.maximum(pictures, 1e-6)
    return np.asarray(pooled[assignment] * (positive / cluster_means(positive, assignment, len(pooled))[assignment]))


def join(
    measured: Matrix, presence: npt.NDArray[Any], visual: Matrix, weight: float, shrink: float
) -> npt.NDArray[np.float32]:
    """Combine a measured and a data-free half into one preference profile [F, C], rows summing to one.

    `measured` [F, C]: normalised class-wise scores, possibly noisy; negative values count as zero. `presence` [C]:
    images behind each class, possibly noisy. `visual` [F, C]: profiles from pictures, not negative. `weight`: the
    visual half's share of the result, in [0, 1]. `shrink`: number of images at which measurement and pictures are
    believed alike. The result mixes both halves; a caller that needs them later keeps them itself.

    Class c of the measured half is believed to r_c = presence_c / (presence_c + shrink). A measured row is scaled such
    that it hands out, over the classes it was measured on, just the share that the visual row gives to them
    (Σ r_c·measured_c = Σ r_c·visual_c); the rest 1 − r_c comes from the visual row. So a class that nobody has seen
    neither counts as unwanted by every filter nor inflates the others, and rows keep their sum. All classes seen:
    the measured row over its sum. None seen, or nothing measured of a filter: the visual row.
    """
    if not 0 <= weight <= 1 or shrink < 0:
        raise ValueError(f"weight is {weight}, must be in [0, 1]; shrink is {shrink}, must not be negative")
    pictured = _distribution(visual)
    seen = np.maximum(np.asarray(presence, dtype=np.float64), 0)
    belief = np.divide(seen, seen + shrink, out=np.zeros_like(seen), where=seen > 0)
    found = np.maximum(np.asarray(measured, dtype=np.float64), 0) * belief
    total = found.sum(1, keepdims=True)
    share = (pictured * belief).sum(1, keepdims=True)
    shrunk = np.divide(found * share, total, out=pictured * belief, where=total > 0) + pictured * (1 - belief)
    return ((1 - weight) * shrunk + weight * pictured).astype(np.float32)


def importance(
    groups: ChannelGroups, preference: Matrix | None, usage: npt.NDArray[Any], weight: float
) -> dict[str, npt.NDArray[np.float64]] | None:
    """Compute factors [channels] on the cost of removing each filter, by group.

    A factor is the filter's preference for the used classes, in proportion to `usage` [classes], over that of an
    indifferent filter, to the power `weight`. None where nothing is known or `weight` is 0.
    """
    if preference is None or weight == 0:
        return None
    served = np.maximum(np.asarray(preference, dtype=np.float64) @ usage * len(usage), 1e-3) ** weight
    return {g.name: served[rows] for g, rows in zip(groups.prunable, layer_slices(groups), strict=True)}


def _distribution(matrix: Matrix) -> npt.NDArray[np.float64]:
    """Divide rows by their sum; a row of zeros becomes uniform."""
    positive = np.maximum(np.asarray(matrix, dtype=np.float64), 0)
    total = positive.sum(1, keepdims=True)
    return np.divide(positive, total, out=np.full_like(positive, 1 / positive.shape[1]), where=total > 0)
