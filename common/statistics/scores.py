"""Filter scores: which filters the owners' classes need."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fedcaptor.common.arrays import Array, Floats, Indices, Tensors
from fedcaptor.common.errors import WireError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.preference import cluster_means, layer_slices
from fedcaptor.common.statistics.base import FilterScores, PhoneView, Precision, Statistic

if TYPE_CHECKING:
    from fedcaptor.common.config import Config


class Scores(Statistic):
    """First-order Taylor scores of filters by class, pooled by filter cluster, beside the presence of each class.

    Each (layer, class) block has unit norm. Both halves carry the weight 1/√(2k), k the phone's number of classes:
    their ratio in a sum is a mean over phones, and a vector has norm 1 at most. A phone that cannot score adds zeros.
    """

    name = kind = "scores"
    tensors = frozenset({"pool"})
    rotated = True

    def share(self, config: Config) -> float | None:
        return config.privacy.scores_share if config.scores.enabled else 0.0

    def sums(self, config: Config, round: int) -> int:
        return int(config.scores.enabled and round == 1)

    def length(self, groups: ChannelGroups, blocks: int) -> int:
        return (blocks + 1) * groups.classes

    def longest(self, groups: ChannelGroups) -> int:
        return self.length(groups, _filters(groups))

    def vector(self, phone: PhoneView, tensors: Tensors) -> Floats:
        groups = phone.groups
        assignment, clusters = _assignment(tensors, _filters(groups))
        found = phone.filter_scores()
        if found is None:
            return np.zeros(self.length(groups, clusters))
        return scores_vector(pooled(found, assignment, clusters, groups), found.present, len(groups.prunable))

    def decode(self, total: Floats, groups: ChannelGroups) -> tuple[Floats, Floats]:
        """Mean pooled scores [M, classes] and presence weight [classes]; absent classes are zero."""
        return scores_mean(total, len(groups.prunable), groups.classes)

    def precision(self, config: Config, groups: ChannelGroups, clusters: int) -> Precision:
        """For owners who meet so many classes, and each class alike."""
        own = (config.population.classes_min + min(config.population.classes_max, groups.classes)) / 2
        per_entry = math.sqrt(len(groups.prunable) * 2 * own) * groups.classes / own
        return Precision("a class's score of a filter cluster; its layer's have norm 1", per_entry, 0.1)


SCORES = Scores()


def pooled(found: FilterScores, assignment: Indices, clusters: int, groups: ChannelGroups) -> Floats:
    """Scores of filter clusters [M, classes], each (layer, class) block in unit norm; `assignment` [F] names each
    filter's cluster.
    """
    return unit_blocks(cluster_means(found.scores, assignment, clusters), assignment, groups)


def unit_blocks(matrix: Array, assignment: Array, groups: ChannelGroups) -> Floats:
    """A matrix [M, classes] over filter clusters with each (layer, class) block scaled to unit L2 norm."""
    result = np.zeros(matrix.shape)
    for rows in layer_slices(groups):
        members = np.unique(assignment[rows])
        norm = np.linalg.norm(matrix[members], axis=0)
        result[members] = np.divide(matrix[members], norm, out=np.zeros_like(result[members]), where=norm > 0)
    return result


def scores_vector(matrix: Array, present: Array, layers: int) -> Floats:
    """Pooled scores [M, classes] beside presence [classes], together in unit norm: [(M + 1) · classes]."""
    own = max(int(present.sum()), 1)
    blocks = matrix * present / math.sqrt(2 * layers * own)
    return np.concatenate([blocks.ravel(), present / math.sqrt(2 * own)])


def scores_mean(total: Floats, layers: int, classes: int) -> tuple[Floats, Floats]:
    """Mean pooled scores [M, classes] and presence weight [classes] from a sum of `scores_vector`."""
    blocks, presence = total[:-classes].reshape(-1, classes), np.maximum(total[-classes:], 0)
    mean = np.divide(blocks * math.sqrt(layers), presence, out=np.zeros_like(blocks), where=presence > 1e-9)
    return np.maximum(mean, 0), presence


def _filters(groups: ChannelGroups) -> int:
    return sum(group.channels for group in groups.prunable)


def _assignment(tensors: Tensors, filters: int) -> tuple[Array, int]:
    """The cluster [F] of each filter, and how many clusters there are. Raises WireError."""
    assignment = tensors.get("pool")
    if assignment is None or assignment.shape != (filters,) or assignment.min(initial=0) < 0:
        raise WireError("wrong_shape", f"pool must be [{filters}] and not negative")
    clusters = int(assignment.max(initial=-1)) + 1
    if clusters > filters:
        raise WireError("oversized", f"pool names {clusters} clusters of {filters} filters")
    return assignment, clusters
