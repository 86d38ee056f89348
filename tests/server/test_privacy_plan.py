"""The plan of a run's privacy: what it says of precision is what the sums' noise does to the figures."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from fedcaptor.cli.main import app
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.zcdp import epsilon
from fedcaptor.common.statistics.scores import scores_mean, scores_vector
from fedcaptor.server.budget import SumBudget, steps, steps_of
from fedcaptor.server.privacy_plan import PrivacyPlan, plan_sums, year
from tests.server.test_budget import GROUPS

CLASSES = 10


def planned(*overrides: str) -> PrivacyPlan:
    return plan_sums(load_config(None, ["population.phones=1000", *overrides]), GROUPS)


def test_sums_are_the_budgets_and_compose_to_the_runs_epsilon() -> None:
    overrides = ["run.rounds=2", "privacy.epsilon=4", "population.phones=1000"]
    found, config = planned(*overrides), load_config(None, overrides)
    budget = SumBudget(config, GROUPS, 1000)
    blocks = {"usage-0": 1, "scores-0": 16}
    specs = [budget.spec(step, blocks.get(step.name, 8)) for step in steps(config)]
    assert [(s.name, s.length, s.noise_multiplier) for s in found.sums] == [
        (s.name, s.length, s.noise_multiplier) for s in specs
    ]
    for count, one in enumerate(found.sums, 1):
        assert one.epsilon == pytest.approx(epsilon([specs[count - 1]], 1e-5, 0.05))
        assert one.composed == pytest.approx(epsilon(specs[:count], 1e-5, 0.05))
    assert found.epsilon == pytest.approx(found.sums[-1].composed) == pytest.approx(4, rel=0.01)
    assert 4 < found.dishonest[0.1] < found.dishonest[0.2]


def test_topics_are_planned_like_clusters_and_pairs_of_ten_classes_are_55() -> None:
    by_method = [planned(f"clusters.method={method}") for method in ("kmeans", "topics")]
    kmeans, topics = ([(one.name, one.length, one.rho) for one in found.sums] for found in by_method)
    assert kmeans == topics
    assert topics[0][1] == 55


def test_a_reserve_is_within_epsilon_and_shown() -> None:
    none, one = planned(), planned("privacy.reserve=1")
    assert (none.reserve, none.epsilon_reserve) == (0, none.epsilon)
    assert one.epsilon < one.epsilon_reserve == pytest.approx(8, rel=0.01)  # type: ignore[operator]
    assert all(b.noise_multiplier > a.noise_multiplier for a, b in zip(none.sums, one.sums, strict=True))


def test_a_year_is_five_whole_periods() -> None:
    assert planned().periods == 5
    assert planned().year == pytest.approx(21.8, abs=0.05)  # docs/privacy.md
    assert year(8.0, 1e-5, 1) == pytest.approx(8.0, rel=1e-6)


@pytest.mark.parametrize("reserve", [0, 1])
def test_a_run_without_a_last_round_is_planned_for_90_days(reserve: int) -> None:
    overrides = ["run.rounds=0", "privacy.rounds_per_period=3", f"privacy.reserve={reserve}"]
    found, three = planned(*overrides), planned("run.rounds=3", f"privacy.reserve={reserve}")
    assert (found.rounds, three.rounds, three.later) == (3, None, None)
    assert (found.sums, found.epsilon, found.year) == (three.sums, three.epsilon, three.year)
    config = load_config(None, ["population.phones=1000", *overrides])
    budget = SumBudget(config, GROUPS, 1000)
    assert found.later is not None
    later = [budget.spec(step, None) for round in range(4, 5 + found.later) for step in steps_of(config, round)]
    each = len(later) // (found.later + 1)
    within, beyond = (epsilon([*later[:n], *budget.reserved(later)], 1e-5, 0.05) for n in (-each, None))
    assert within <= 8 < beyond
    assert found.later > 3


def deviations(found: PrivacyPlan) -> dict[str, float]:
    return {one.name: one.deviation for one in found.sums}


def test_the_deviation_of_a_clusters_usage_is_what_noise_does_to_it() -> None:
    found, rng = planned(), np.random.default_rng(0)
    (one,) = (s for s in found.sums if s.name == "1-usage-1")
    usage = rng.dirichlet(np.ones(CLASSES))
    clean = np.tile(usage, (found.clusters, 1)) * found.cohort / found.clusters
    noisy = clean + rng.normal(0, one.entry, (4000, *clean.shape))
    shares = noisy / noisy.sum(2, keepdims=True)
    assert (shares - usage).std() == pytest.approx(one.deviation, rel=0.1)


def test_the_deviation_of_a_score_is_what_noise_does_to_it() -> None:
    found, rng = planned("population.classes_min=3", "population.classes_max=3"), np.random.default_rng(1)
    (one,) = (s for s in found.sums if s.name == "1-scores-0")
    layers, clusters = len(GROUPS.prunable), 16
    pooled = np.full((clusters, CLASSES), 1 / math.sqrt(8))  # 8 clusters a layer, in unit norm
    total = np.zeros((clusters + 1) * CLASSES)
    for _ in range(found.cohort):
        present = np.zeros(CLASSES, bool)
        present[rng.choice(CLASSES, 3, replace=False)] = True
        total += scores_vector(pooled, present, layers)
    errors = [
        scores_mean(total + rng.normal(0, one.entry, total.shape), layers, CLASSES)[0] - pooled for _ in range(100)
    ]
    assert np.std(errors) == pytest.approx(one.deviation, rel=0.1)


def test_the_deviation_of_a_fleet_figure_is_what_noise_does_to_it() -> None:
    found, rng = planned("clusters.k=4"), np.random.default_rng(2)
    (one,) = (s for s in found.sums if s.name == "1-outcome-0")
    noise = rng.normal(0, one.entry, (20_000, 4)).sum(1) / found.cohort
    assert noise.std() == pytest.approx(one.deviation, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["privacy.epsilon=2", "privacy.dropout=0.2", "privacy.dishonest=0.1"]])
def test_as_many_phones_as_it_asks_for_are_enough(overrides: list[str]) -> None:
    sums = planned(*overrides).sums
    for place, one in ((1, sums[1]), (3, sums[3])):
        enough = planned(*overrides, f"population.phones={max(one.phones, 200)}").sums[place]
        assert enough.deviation <= one.target * 1.01
        if one.phones > 250:
            few = planned(*overrides, f"population.phones={int(0.9 * one.phones)}").sums[place]
            assert few.deviation > one.target


def test_without_noise_there_is_no_epsilon_and_nothing_to_average_out() -> None:
    found = planned("privacy.noise=false")
    assert (found.epsilon, found.year, found.dishonest) == (None, None, {})
    assert {one.rho for one in found.sums} == {None}
    assert set(deviations(found).values()) == {0.0}
    assert "noise off" in found.marks


def test_too_small_a_cohort_is_refused() -> None:
    with pytest.raises(PrivacyError, match="min_cohort is 50"):
        planned("population.phones=30")


@pytest.mark.slow
def test_the_command_prints_tables_and_json() -> None:
    words = ["privacy", "plan", "simulations/scenarios/demo.toml", "--set", "privacy.epsilon=6"]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["phones"], found["survivors"], found["clusters"]) == (100, 90, 8)
    assert found["epsilon"] == pytest.approx(6, rel=0.01)
    assert set(found["dishonest"]) == {"0.1", "0.2"}
    reserve = CliRunner().invoke(app, [*words, "--set", "privacy.reserve=1"])
    assert "with 1 of its sums repeated" in reserve.stdout
    none = CliRunner().invoke(app, [*words, "--set", "privacy.noise=false"])
    assert none.exit_code == 0
    assert "1-scores-0" in none.stdout
    assert "no noise" in none.stdout
