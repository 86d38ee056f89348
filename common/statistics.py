"""The vectors that phones add up, as both sides lay them out. Each has joint L2 norm at most its `clip`.

Blocks: a vector of K blocks is zero outside the block of the phone's own cluster, so that no cohort is ever formed by
cluster and every reply has one size.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Array
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.preference import layer_slices

Vector = npt.NDArray[np.float64]

OUTCOME = ("phones", "agreement_cluster", "agreement", "macs", "parameters", "escalated", "personal")
"""What a phone reports of its model, each in [0, 1]; the first is 1, so that a block's sum counts its phones."""

USAGE_CLIP = 1.0
OUTCOME_CLIP = math.sqrt(len(OUTCOME))
SCORES_CLIP = 1.0


def cooccurrence(usage: Vector) -> Vector:
    """Upper triangle [C·(C+1)/2] of u·uᵀ, weighted such that its norm is that of the matrix: at most (Σu)² = 1."""
    rows, columns = np.triu_indices(len(usage))
    return np.where(rows == columns, 1.0, math.sqrt(2)) * usage[rows] * usage[columns]


def cooccurrence_matrix(total: Vector, classes: int) -> Vector:
    """[C, C] from a sum of `cooccurrence` vectors."""
    rows, columns = np.triu_indices(classes)
    matrix = np.zeros((classes, classes))
    matrix[rows, columns] = total / np.where(rows == columns, 1.0, math.sqrt(2))
    return matrix + np.triu(matrix, 1).T


def nearest(usage: Vector, centroids: Array) -> int:
    """The centroid [K, C] at the least Euclidean distance from a usage distribution [C]."""
    return int(np.square(centroids - usage).sum(1).argmin())


def in_block(values: Vector, block: int, blocks: int) -> Vector:
    """Vector of `blocks` blocks with `values` in one of them."""
    vector = np.zeros((blocks, len(values)))
    vector[block] = values
    return vector.ravel()


def scores_length(groups: ChannelGroups, clusters: int) -> int:
    """Entries of a sum of pooled filter scores with presence counts."""
    return (clusters + 1) * groups.classes


def scores_vector(pooled: Array, present: npt.NDArray[np.bool_], layers: int) -> Vector:
    """Pooled scores [M, C], each (layer, class) block in unit norm, beside presence [C]; together in unit norm.

    Both halves of a phone carry the same weight 1/√(2k), k its number of classes: their ratio is a mean over phones.
    """
    own = max(int(present.sum()), 1)
    blocks = pooled * present / math.sqrt(2 * layers * own)
    return np.concatenate([blocks.ravel(), present / math.sqrt(2 * own)])


def scores_mean(total: Vector, layers: int, classes: int) -> tuple[Vector, Vector]:
    """Mean pooled scores [M, C] and presence weight [C] from a sum of `scores_vector`; absent classes are zero."""
    blocks, presence = total[:-classes].reshape(-1, classes), np.maximum(total[-classes:], 0)
    mean = np.divide(blocks * math.sqrt(layers), presence, out=np.zeros_like(blocks), where=presence > 1e-9)
    return np.maximum(mean, 0), presence


def unit_blocks(pooled: Array, pool: Array, groups: ChannelGroups) -> Vector:
    """Each (layer, class) block of pooled scores [M, C] in unit norm; `pool` [F] names the cluster of each filter."""
    result = np.zeros(pooled.shape)
    for rows in layer_slices(groups):
        members = np.unique(pool[rows])
        length = np.linalg.norm(pooled[members], axis=0)
        result[members] = np.divide(pooled[members], length, out=np.zeros_like(result[members]), where=length > 0)
    return result


def pack_plan(kept: dict[str, Array], groups: ChannelGroups) -> npt.NDArray[np.uint8]:
    """Kept channels of all groups, the classes' group included, as packed bits: one size for every plan."""
    bits = [np.isin(np.arange(g.channels), kept.get(g.name, np.arange(g.channels))) for g in groups.groups]
    return np.packbits(np.concatenate(bits))


def unpack_plan(packed: Array, groups: ChannelGroups) -> dict[str, Array]:
    """Inverse of `pack_plan`."""
    channels = [g.channels for g in groups.groups]
    bits = np.unpackbits(packed, count=sum(channels)).astype(bool)
    parts = np.split(bits, np.cumsum(channels)[:-1])
    return {g.name: np.flatnonzero(part) for g, part in zip(groups.groups, parts, strict=True)}
