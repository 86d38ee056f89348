"""Class usage: what owners meet, first as co-occurrence of classes, then by preference cluster."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fedcaptor.common.arrays import Floats, Tensors
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.statistics.base import PhoneView, Precision, Statistic, centroids_in, in_block, nearest

if TYPE_CHECKING:
    from fedcaptor.common.config import Config

_TARGET = 0.02


class _OfUsage(Statistic):
    kind = "usage"

    def share(self, config: Config) -> float | None:
        return None


class Cooccurrence(_OfUsage):
    """The upper triangle of u·uᵀ for the class usage u, once: classes that are met together become the first
    centroids. Off-diagonal entries are weighted by √2, so that the vector's norm is the matrix's, at most (Σu)² = 1.
    """

    name = "cooccurrence"

    def sums(self, config: Config, round: int) -> int:
        return int(round == 1)

    def length(self, groups: ChannelGroups, blocks: int) -> int:
        return groups.classes * (groups.classes + 1) // 2

    def longest(self, groups: ChannelGroups) -> int:
        return max(self.length(groups, 1), USAGE.longest(groups))

    def vector(self, phone: PhoneView, tensors: Tensors) -> Floats:
        return cooccurrence(phone.usage())

    def decode(self, total: Floats, groups: ChannelGroups) -> Floats:
        """The symmetric matrix [classes, classes]."""
        return cooccurrence_matrix(total, groups.classes)

    def precision(self, config: Config, groups: ChannelGroups, clusters: int) -> Precision:
        return Precision("co-occurrence of two classes, mean over phones", 1.0, _TARGET)


class Usage(_OfUsage):
    """The class usage in the block of the nearest centroid: a step of k-means. Usage sums to one, so a block's total
    counts its phones.
    """

    name = "usage"
    tensors = frozenset({"centroids"})
    first = 1

    def sums(self, config: Config, round: int) -> int:
        return config.clusters.iterations if round == 1 else 1

    def length(self, groups: ChannelGroups, blocks: int) -> int:
        return blocks * groups.classes

    def longest(self, groups: ChannelGroups) -> int:
        return 32 * groups.classes

    def vector(self, phone: PhoneView, tensors: Tensors) -> Floats:
        usage, centroids = phone.usage(), centroids_in(tensors, phone.groups.classes)
        return in_block(usage, nearest(usage, centroids), len(centroids))

    def decode(self, total: Floats, groups: ChannelGroups) -> Floats:
        """Summed usage of each block [K, classes]."""
        return total.reshape(-1, groups.classes)

    def precision(self, config: Config, groups: ChannelGroups, clusters: int) -> Precision:
        return Precision("share of a class in a cluster's usage", float(clusters), _TARGET)


COOCCURRENCE, USAGE = Cooccurrence(), Usage()


def cooccurrence(usage: Floats) -> Floats:
    """Upper triangle [C·(C+1)/2] of u·uᵀ, weighted such that its norm is that of the matrix."""
    rows, columns = np.triu_indices(len(usage))
    return np.where(rows == columns, 1.0, math.sqrt(2)) * usage[rows] * usage[columns]


def cooccurrence_matrix(total: Floats, classes: int) -> Floats:
    """Symmetric matrix [C, C] from a sum of `cooccurrence` vectors."""
    rows, columns = np.triu_indices(classes)
    matrix = np.zeros((classes, classes))
    matrix[rows, columns] = total / np.where(rows == columns, 1.0, math.sqrt(2))
    return matrix + np.triu(matrix, 1).T
