"""Rows of the benchmark, from a tiny world; who is judged and how."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.evaluation import centroid_error
from benchmarks.private_vs_open import Population, PrivacyMeasurement, PrivateVsOpen, budgets
from benchmarks.record import rounded
from fedcaptor.common.errors import ConfigError
from tests import tiny


@pytest.fixture(scope="module")
def measurement(bars, tmp_path_factory):
    overrides = tuple(tiny.overrides(*bars, "clusters.alike=0.01", "privacy.min_cohort=5")[:-1])
    folder = tmp_path_factory.mktemp("measurement")
    return PrivacyMeasurement(Population(30, 20, overrides), 8, 8, folder, lambda name, done, total: None)


@pytest.fixture(scope="module")
def rows(measurement):
    keys = PrivateVsOpen(epsilons="8,inf", phones="30,25", judged=8).row_keys()
    return [{**key, **rounded(measurement.measure(key))} for key in keys]


@pytest.mark.slow
def test_rows_without_noise_come_first(rows):
    assert [(row["phones"], row["epsilon"]) for row in rows] == [(25, None), (25, 8.0), (30, None), (30, 8.0)]


@pytest.mark.slow
def test_rows_hold_what_phones_get(rows):
    for row in rows:
        assert 0.5 < row["accuracy"] <= row["accuracy_limited"] <= 1
        assert row["accuracy"] <= row["served"]
        assert row["macs_ratio"] <= 0.6
        assert 0 < row["macs_personal"] <= row["macs_effective"]
        assert row["accuracy_personal"] > 0.5
        assert row["judged"] == 8
    assert [row["spent_epsilon"] is None for row in rows] == [True, False, True, False]
    assert all(row["spent_epsilon"] <= 8 for row in rows[1::2])
    assert all(row["centroid_error"] == 0 for row in rows[::2])


def test_the_same_phones_and_images_are_judged_everywhere(rows):
    assert len({(row["accuracy_full"], row["accuracy_full_limited"]) for row in rows}) == 1


def test_clusters_are_judged_as_the_oracle_judges_them(measurement):
    from fedcaptor.simulations.oracle import Oracle

    served, evaluation = measurement._exact(0, 30), measurement._evaluation(0)
    evaluation.of_phones(served, range(8), lambda name, done, total: None)
    oracle = Oracle(evaluation.world.directory, evaluation.world.config, evaluation.world.base, served.models)
    figures, found = [oracle.phone(number, 1) for number in range(8)], evaluation.of_clusters(served)
    for name, ours in (("accuracy_cluster", "accuracy"), ("accuracy_cluster_limited", "accuracy_limited")):
        assert found[ours] == pytest.approx(np.mean([getattr(f, name) for f in figures]))
    for name in ("accuracy_full", "accuracy_full_limited"):
        assert evaluation.of_full[name] == pytest.approx(np.mean([getattr(f, name) for f in figures]))
    assert found["macs_ratio"] == pytest.approx(np.mean([f.cluster_macs_ratio for f in figures]))


def test_centroid_error_by_hand():
    two, exact = SimpleNamespace(usage=np.eye(2)), np.eye(2)
    assert centroid_error(two, 2, exact[::-1], exact) == 0  # the order of clusters says nothing
    assert centroid_error(two, 1, np.array([[0.5, 0.5]]), exact) == pytest.approx(0.311278)
    assert centroid_error(two, 2, np.array([[1.0, 0.0]]), exact) == 0.5  # the second phone's is as far as can be


def test_budgets_are_read():
    assert budgets("inf,8,0.5") == [None, 8.0, 0.5]
    for text in ("8,8", "0", "eight", "-1,8", "nan"):
        with pytest.raises(ConfigError, match="epsilons is"):
            budgets(text)


def test_more_judges_than_phones_are_refused():
    with pytest.raises(ConfigError, match="judged 200 must be at most the largest population 100"):
        PrivateVsOpen(phones="100", judged=200, personal=0)
