"""A cluster keeps its name through rounds and merges."""

from __future__ import annotations

import numpy as np

from fedcaptor.server.cluster_names import cluster_names

A, B, C = np.eye(4)[:3] * 0.85 + 0.05 / 4 + 0.025


def rows(*centroids: np.ndarray) -> np.ndarray:
    found = np.array(centroids)
    return found / found.sum(1, keepdims=True)


def test_names_follow_centroids_and_not_places() -> None:
    assert cluster_names([rows(A, B, C)]) == [0, 1, 2]
    assert cluster_names([rows(A, B, C), rows(C, 0.9 * A + 0.1 * B, B)]) == [2, 0, 1]


def test_a_merged_cluster_takes_its_name_along() -> None:
    history = [rows(A, B, C), rows(B, C), rows(B, C, A)]
    assert cluster_names(history[:2]) == [1, 2]
    assert cluster_names(history) == [1, 2, 3]  # what comes again is a new one


def test_a_cluster_of_other_classes_is_another_one() -> None:
    assert cluster_names([rows(A), rows(B)]) == [1]


def test_names_grow_beyond_all_bounds_and_the_exporter_folds_them() -> None:
    assert cluster_names([rows(A), rows(B)] * 20) == [39]


def test_centroids_may_be_rounded() -> None:
    rounded = np.round(rows(A, B), 6).astype(np.float32).astype(np.float64)
    assert cluster_names([rounded, rounded]) == [0, 1]
