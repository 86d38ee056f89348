"""A population whose owners have two interests each: topics, found in private sums, are these interests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedcaptor.common.config import load_config
from fedcaptor.common.random_streams import Stream, stream
from fedcaptor.simulations.habits import _interests
from fedcaptor.simulations.runner import simulate
from tests import tiny

TOPICS = [
    'population.law="interests"',
    "population.phones=30",
    "population.groups=3",
    "population.classes_max=2",
    "population.exponent=0",
    "population.concentration=1e4",
    "population.out_of_set=0",
    'clusters.method="topics"',
    "clusters.k=3",
    "clusters.iterations=6",
    "privacy.noise=false",
    "privacy.min_cohort=3",
    "testing.small_cohorts=true",
    "scores.enabled=false",
    "personal.ladder=[0.6]",
]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_topics_become_the_interests_and_submodels_serve_both_of_an_owner(tmp_path: Path) -> None:
    config = load_config(None, tiny.overrides(*tiny.write(tmp_path / "tiny"), *TOPICS))
    summary = simulate(config, tmp_path / "run")
    details = json.loads((tmp_path / "run" / "details.json").read_text())
    topics = np.array([cluster["centroid"] for cluster in details["clusters"]])
    interests = _interests(config.population, tiny.CLASSES, stream(config.run.seed, Stream.HABITS))
    assert np.abs(topics[:, None] - interests[None]).sum(2).min(1).max() < 0.4
    assert summary["accuracy"]["personalised"]["mean"] >= summary["accuracy"]["full"]["mean"]
