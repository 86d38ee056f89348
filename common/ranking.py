"""Pruning curves from a score of each filter, for strategies that rank filters and remove the lowest.

Numpy alone. Scores [channels] by group are not negative. They say which filter of a layer matters more, not how much
a layer suffers from losing many: L1 norms of two layers have different scales, and first-order effects do not grow as
a layer empties, so that taken as they are they make the planner empty every other layer. A removal therefore costs the
share that it takes of what its layer still has: scores need no common scale, and each further removal costs more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Floats, Indices
from fedcaptor.common.filter_clusters import filter_clusters
from fedcaptor.common.groups import ChannelGroups, Group, State
from fedcaptor.common.preference import Matrix, cluster_means, layer_slices, normalise
from fedcaptor.common.selection import PruningCurve

Scores = dict[str, Floats]
"""A score of each filter [channels], by group."""


def ranked(groups: ChannelGroups, scores: Mapping[str, Floats]) -> dict[str, PruningCurve]:
    """Make pruning curves that remove the filters with the lowest scores first."""
    return {g.name: shares(scores[g.name], np.argsort(scores[g.name], kind="stable")) for g in rankable_groups(groups)}


def weight_norms(groups: ChannelGroups, state: State) -> Scores:
    """Sum up the L1 norm of each filter's weights (Li et al., ICLR 2017), over all producers of a residual sum."""
    return {group.name: _weight_norm(group, state) for group in rankable_groups(groups)}


def for_classes(scores: Mapping[str, Matrix], presence: npt.NDArray[Any], target_classes: Indices) -> Scores:
    """Reduce class-wise scores, sums over images [channels, classes], to the sum of the target classes' means.

    `presence` [classes]: images behind each class. A class without images says nothing.
    """
    images = np.maximum(np.asarray(presence, dtype=np.float64)[target_classes], 1)
    return {
        name: (np.asarray(score, dtype=np.float64)[:, target_classes] / images).sum(1) for name, score in scores.items()
    }


def by_class_preference(
    groups: ChannelGroups,
    scores: Mapping[str, Matrix],
    presence: npt.NDArray[Any],
    target_classes: Indices,
    clusters_per_layer: int = 8,
    seed: int = 0,
) -> dict[str, PruningCurve]:
    """Rank filters in CAPTOR's order (Qin et al., ASP-DAC 2019).

    Filters of a layer are clustered by the classes that they prefer. Whole clusters are removed, those first that
    prefer other than the target classes most; inside a cluster the filter goes first that does least for the target
    classes.

    `scores` [channels, classes] by group, all of `groups.prunable`; a filter's preference is its row after each class
    was given unit norm in each layer. What a layer has is its filters' scores for the target classes.
    """
    profile = normalise([scores[group.name] for group in groups.prunable])
    clusters = filter_clusters(profile, groups, clusters_per_layer, seed)
    pooled = cluster_means(profile.astype(np.float64), clusters, int(clusters.max()) + 1)
    total = pooled.sum(1)
    share = np.divide(pooled[:, target_classes].sum(1), total, out=np.zeros_like(total), where=total > 0)
    own = for_classes(scores, presence, target_classes)
    return {
        group.name: shares(own[group.name], np.lexsort((own[group.name], clusters[rows], share[clusters[rows]])))
        for group, rows in zip(groups.prunable, layer_slices(groups), strict=True)
        if group.consumers
    }


def rankable_groups(groups: ChannelGroups) -> list[Group]:
    """List the groups that a strategy may shrink: prunable, and read by some layer."""
    return [group for group in groups.prunable if group.consumers]


def shares(score: Floats, order: Indices) -> PruningCurve:
    """Price removals in this order: each costs its share of the scores that are left, itself included."""
    going = np.asarray(score, dtype=np.float64)[order]
    left = going[::-1].cumsum()[::-1]
    return PruningCurve(order, np.divide(going, left, out=np.zeros_like(going), where=left > 0))


def _weight_norm(group: Group, state: State) -> Floats:
    """Sum up the L1 norm [channels] of a group's filters over its producers."""
    norm = np.zeros(group.channels)
    producers = {f"{name}.weight" for name in group.producers}
    for place in group.slices:
        if place.tensor in producers and place.dim == 0:
            rows = state[place.tensor][place.offset : place.offset + group.channels * place.taps]
            norm += np.abs(rows.reshape(group.channels, -1).astype(np.float64)).sum(1)
    return norm
