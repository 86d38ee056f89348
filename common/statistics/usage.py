"""Class usage: what owners meet, first as co-occurrence of classes, then by preference cluster or topic."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fedcaptor.common.arrays import Floats, Tensors
from fedcaptor.common.errors import WireError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.statistics.base import PhoneView, Precision, Statistic, in_block, nearest, of_classes
from fedcaptor.common.topics import shared_out

if TYPE_CHECKING:
    from fedcaptor.common.config import Config

_TARGET = 0.02

MOST_COARSE = 32
"""Where there are more classes, coarse ones are counted together: a thousand would make half a million pairs."""


class _OfUsage(Statistic):
    kind = "usage"

    def share(self, config: Config) -> float | None:
        return None


class Cooccurrence(_OfUsage):
    """The upper triangle of u·uᵀ for the class usage u, once: classes that are met together become the first
    centroids. Off-diagonal entries are weighted by √2, so that the vector's norm is the matrix's, at most (Σu)² = 1.

    Of a network with many classes u is that of coarse ones: the tensor `coarse` [classes] numbers that of each class.
    """

    name = "cooccurrence"

    def sums(self, config: Config, round: int) -> int:
        return int(round == 1)

    def length(self, groups: ChannelGroups, blocks: int) -> int:
        """Return the entries of a vector; `blocks` is the number of coarse classes, 1: there are none."""
        classes = blocks if blocks > 1 else groups.classes
        return classes * (classes + 1) // 2

    def longest(self, groups: ChannelGroups) -> int:
        return max(self.length(groups, self.blocks(groups)), USAGE.longest(groups))

    def blocks(self, groups: ChannelGroups) -> int:
        """Return how many coarse classes a network's are counted in, 1 where each class counts by itself."""
        return MOST_COARSE if groups.classes > MOST_COARSE else 1

    def vector(self, phone: PhoneView, tensors: Tensors) -> Floats:
        usage, coarse = phone.usage(), tensors.get("coarse")
        if coarse is None:
            return cooccurrence(usage)
        if coarse.shape != usage.shape or not 0 <= coarse.min() <= coarse.max() < len(usage):
            raise WireError("wrong_shape", f"coarse classes are {coarse.shape}, expected ({len(usage)},), from 0 on")
        return cooccurrence(np.bincount(coarse, usage).astype(np.float64))

    def decode(self, total: Floats, groups: ChannelGroups) -> Floats:
        """The symmetric matrix [classes, classes]."""
        return cooccurrence_matrix(total, (math.isqrt(8 * len(total) + 1) - 1) // 2)

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
        steps = config.clusters.iterations if round == 1 else 1
        return 0 if config.clusters.method == "topics" else steps

    def length(self, groups: ChannelGroups, blocks: int) -> int:
        return blocks * groups.classes

    def longest(self, groups: ChannelGroups) -> int:
        return 32 * groups.classes

    def vector(self, phone: PhoneView, tensors: Tensors) -> Floats:
        usage, centroids = phone.usage(), of_classes("centroids", tensors, phone.groups.classes)
        return in_block(usage, nearest(usage, centroids), len(centroids))

    def decode(self, total: Floats, groups: ChannelGroups) -> Floats:
        """Summed usage of each block [K, classes]."""
        return total.reshape(-1, groups.classes)

    def precision(self, config: Config, groups: ChannelGroups, clusters: int) -> Precision:
        return Precision("share of a class in a cluster's usage", float(clusters), _TARGET)


class Topics(Usage):
    """The class usage, shared out among topics by the phone's own mixture of them (`common.topics`): a step of
    expectation maximisation. Its entries sum to one, so a topic's total counts how many phones it is worth.
    """

    name = "topics"
    tensors = frozenset({"topics"})

    def sums(self, config: Config, round: int) -> int:
        steps = config.clusters.iterations if round == 1 else 1
        return steps if config.clusters.method == "topics" else 0

    def vector(self, phone: PhoneView, tensors: Tensors) -> Floats:
        topics = of_classes("topics", tensors, phone.groups.classes)
        if topics.min() < 0:
            raise WireError("wrong_shape", "topics hold a negative share")
        return shared_out(phone.usage(), topics).ravel()

    def precision(self, config: Config, groups: ChannelGroups, clusters: int) -> Precision:
        return Precision("share of a class in a topic", float(clusters), _TARGET)


COOCCURRENCE, USAGE, TOPICS = Cooccurrence(), Usage(), Topics()


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
