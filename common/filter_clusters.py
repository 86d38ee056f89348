"""Cluster the filters of a layer that prefer the same classes: sums over clusters need far less noise than filters'."""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.preference import Matrix, layer_slices


def filter_clusters(
    profile: Matrix, groups: ChannelGroups, clusters_per_layer: int = 8, seed: int = 0
) -> NDArray[np.int64]:
    """Number the cluster [F] of every prunable filter by its preference profile [F, C].

    k-means on rows in unit L2 norm (so that distance is an angle), layer by layer; numbers run on over the layers, in
    order of first appearance within one. A layer with fewer filters, or fewer different rows, has fewer clusters.
    """
    if clusters_per_layer < 1:
        raise ValueError(f"clusters_per_layer is {clusters_per_layer}, must be at least 1")
    result = np.empty(len(profile), dtype=np.int64)
    used = 0
    for layer in layer_slices(groups):
        labels = _in_order(_layer_clusters(np.asarray(profile[layer], dtype=np.float64), clusters_per_layer, seed))
        result[layer] = labels + used
        used += int(labels.max()) + 1
    return result


def _layer_clusters(rows: NDArray[np.float64], clusters: int, seed: int) -> NDArray[np.int64]:
    """Cluster the rows of one layer by k-means; numbers are arbitrary."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    different, inverse = np.unique(unit.round(6), axis=0, return_inverse=True)
    if len(different) <= clusters:
        return inverse.reshape(-1).astype(np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = KMeans(clusters, n_init=4, random_state=seed % 2**32).fit_predict(unit)
    return np.asarray(labels, dtype=np.int64)


def _in_order(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Renumber clusters without gaps by first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse.reshape(-1)].astype(np.int64)
