"""The budget of a run: all sums together cost at most the configured ε, and too small a cohort is refused."""

from __future__ import annotations

from collections import Counter

import pytest

from fedcaptor.common.config import Config, load_config
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.groups import ChannelGroups, Group
from fedcaptor.common.privacy.zcdp import epsilon
from fedcaptor.common.statistics import COOCCURRENCE, OUTCOME, SCORES, USAGE
from fedcaptor.server.budget import Step, SumBudget, steps

GROUPS = ChannelGroups(
    "by hand",
    (1, 8, 8),
    (Group("a", 32, (), ()), Group("b", 64, (), ()), Group("classes", 10, (), (), output=True)),
    (),
    {},
)


def config_of(*overrides: str) -> Config:
    return load_config(None, list(overrides))


def sums(budget: SumBudget, config: Config, blocks: int) -> list:
    """Specs of the whole run: every sum with as many blocks as clusters, scores with as many as filter clusters."""
    return [budget.spec(step, 16 if step.kind == "scores" else blocks) for step in steps(config)]


def test_the_steps_of_two_rounds() -> None:
    config = config_of("run.rounds=2", "clusters.iterations=2")
    expected = ["1-usage-0", "1-usage-1", "1-usage-2", "1-scores-0", "1-outcome-0", "2-usage-1", "2-outcome-0"]
    assert [f"{s.round}-{s.name}" for s in steps(config)] == expected
    assert "scores" not in {s.kind for s in steps(config_of("scores.enabled=false"))}


@pytest.mark.parametrize(
    ("phones", "overrides"),
    [
        (50, ["privacy.epsilon=8"]),
        (120, ["privacy.epsilon=1", "run.rounds=5"]),
        (120, ["privacy.epsilon=8", "privacy.dishonest=0.2", "privacy.dropout=0.3"]),
        (2000, ["privacy.epsilon=0.5", "run.rounds=3", "rounds.cohort=200", "clusters.iterations=5"]),
        (10_000, ["privacy.epsilon=4", "scores.enabled=false", "privacy.delta=1e-7"]),
    ],
)
def test_all_sums_together_stay_within_epsilon_and_waste_little(phones: int, overrides: list[str]) -> None:
    config = config_of(*overrides)
    budget = SumBudget(config, GROUPS, phones)
    for blocks in (1, 32):
        spent = budget.epsilon(sums(budget, config, blocks))
        assert spent is not None
        assert 0.97 * config.privacy.epsilon < spent <= config.privacy.epsilon


@pytest.mark.parametrize("reserve", [1, 3])
def test_a_reserve_leaves_room_for_the_most_expensive_sums(reserve: int) -> None:
    config = config_of(f"privacy.reserve={reserve}")
    budget = SumBudget(config, GROUPS, 100)
    specs = sums(budget, config, 8)
    dearest = max(specs, key=lambda spec: epsilon([spec], 1e-5, 0.05))
    with_reserve = budget.epsilon([*specs, *[dearest] * reserve])
    assert 0.97 * 8 < with_reserve <= 8  # type: ignore[operator]
    assert budget.reserved(specs) == [dearest] * reserve
    assert budget.epsilon(specs) < 7.5  # type: ignore[operator]


def test_parts_are_divided_as_configured() -> None:
    config = config_of("run.rounds=2", "privacy.outcome_share=0.2", "privacy.scores_share=0.5")
    budget = SumBudget(config, GROUPS, 500)
    charges: Counter[str] = Counter()
    for step in steps(config):
        charge = budget.charge(budget.spec(step))
        assert charge is not None
        charges[step.kind] += charge  # type: ignore[assignment]
    total = sum(charges.values())
    for kind, share in {"usage": 0.3, "scores": 0.5, "outcome": 0.2}.items():
        assert charges[kind] / total == pytest.approx(share, rel=0.02)


def test_a_sum_knows_its_cohort_and_survivors() -> None:
    config = config_of("privacy.dropout=0.3", "rounds.cohort=100")
    budget = SumBudget(config, GROUPS, 400)
    spec = budget.spec(Step(1, USAGE, 1), 4)
    assert (spec.name, spec.length, spec.cohort, spec.min_survivors) == ("1-usage-1", 40, 100, 70)
    assert budget.spec(Step(1, COOCCURRENCE, 0)).length == 55
    assert budget.spec(Step(1, SCORES, 0), 16).length == 170
    assert SumBudget(config, GROUPS, 60).spec(Step(1, OUTCOME, 0)).min_survivors == 50  # never below min_cohort


def test_small_cohorts_are_refused() -> None:
    with pytest.raises(PrivacyError, match=r"the cohort has 49 phones, privacy\.min_cohort is 50: take more"):
        SumBudget(config_of(), GROUPS, 49)
    with pytest.raises(PrivacyError, match="the cohort has 30 phones"):
        SumBudget(config_of("rounds.cohort=30"), GROUPS, 1000)
    with pytest.raises(PrivacyError, match="min_cohort 10 is below 20"):
        SumBudget(config_of("privacy.min_cohort=10"), GROUPS, 30)
    allowed = SumBudget(config_of("privacy.min_cohort=10", "testing.small_cohorts=true"), GROUPS, 30)
    assert allowed.spec(Step(1, COOCCURRENCE, 0)).small_cohorts


def test_more_dishonest_phones_than_survivors_are_out_of_reach() -> None:
    with pytest.raises(PrivacyError, match="out of reach"):
        SumBudget(config_of("privacy.dishonest=0.95"), GROUPS, 100)


def test_without_noise_there_is_no_epsilon() -> None:
    budget = SumBudget(config_of("privacy.noise=false"), GROUPS, 100)
    spec = budget.spec(Step(1, COOCCURRENCE, 0))
    assert spec.noise_multiplier == 0
    assert budget.epsilon([spec]) is None
    assert budget.charge(spec) is None


@pytest.mark.parametrize("phones", [50, 1_000, 500_000])
@pytest.mark.parametrize("noise", ["true", "false"])
def test_sums_of_any_size_fit_their_integers(phones: int, noise: str) -> None:
    """A spec that could wrap around refuses itself, and so does one whose noise is less than half a quantum a phone."""
    config = config_of(f"privacy.noise={noise}", "privacy.epsilon=2", "privacy.sums=plain")  # masks: at most 2**16
    budget = SumBudget(config, GROUPS, phones)
    spent = budget.epsilon(sums(budget, config, 32))  # building them is the test
    assert spent is None if noise == "false" else 1.9 < spent <= 2


@pytest.mark.parametrize("noise", ["true", "false"])
def test_sums_take_as_few_bits_as_they_need_and_scores_are_rotated(noise: str) -> None:
    config = config_of(f"privacy.noise={noise}")
    for phones in (100, 1_000, 10_000):
        budget = SumBudget(config, GROUPS, phones)
        for spec in sums(budget, config, 8):
            assert spec.bits == spec.least_bits
            assert spec.rotated == ("scores" in spec.name)
            if noise == "true":
                assert spec.bits <= 26


def test_scores_of_every_filter_alone_stay_within_epsilon() -> None:
    config = config_of("privacy.scores_share=0.8")
    budget = SumBudget(config, GROUPS, 1_000)
    specs = [budget.spec(step, 96 if step.kind == "scores" else 32) for step in steps(config)]
    spent = budget.epsilon(specs)
    assert spent is not None
    assert 0.97 * 8 < spent <= 8
    (scores,) = (spec for spec in specs if spec.rotated)
    assert scores.sensitivity < 1.0101 * scores.scale * scores.clip  # what rounding adds to the noise


def test_the_figure_towards_a_server_that_cheats() -> None:
    """Masks leave it more than half of the honest phones of the smallest list: 43 of 85 here. In plain sums it has
    each share alone, a ninetieth of the noise.
    """
    figures = {}
    for sums_are in ("masked", "plain"):
        config = config_of(f"privacy.sums={sums_are}", "privacy.epsilon=8")
        budget = SumBudget(config, GROUPS, 100)
        specs = sums(budget, config, 8)
        figures[sums_are] = budget.epsilon_server(specs)
        if sums_are == "masked":
            assert figures["masked"] == pytest.approx(epsilon(specs, 1e-5, (90 - 43) / 100 - 1e-9))
            assert budget.epsilon(specs) == pytest.approx(epsilon(specs, 1e-5, 0.05))
    assert 8 < figures["masked"] < 13  # type: ignore[operator]
    assert figures["plain"] > 100  # type: ignore[operator]
    quiet = SumBudget(config_of("privacy.noise=false"), GROUPS, 100)
    assert quiet.epsilon_server([quiet.spec(Step(1, COOCCURRENCE, 0))]) is None


@pytest.mark.slow
def test_cohorts_that_no_masks_can_protect_are_refused_with_what_would_work() -> None:
    large = r"no threshold .* for 700 phones .*allows a cohort of 650, 1,000 phones allow privacy\.dropout 0\.27$"
    with pytest.raises(PrivacyError, match=large):
        SumBudget(config_of("privacy.dropout=0.3"), GROUPS, 1000)
    SumBudget(config_of("privacy.dropout=0.3", "rounds.cohort=650"), GROUPS, 1000)
    SumBudget(config_of("privacy.dropout=0.27"), GROUPS, 1000)
    with pytest.raises(PrivacyError, match=r"dropout 0\.45 .* a cohort of 91, 70 phones allow privacy\.dropout 0\.44$"):
        SumBudget(config_of("privacy.dropout=0.45"), GROUPS, 70)
    SumBudget(config_of("privacy.dropout=0.45"), GROUPS, 91)
    with pytest.raises(PrivacyError, match=r"allows no cohort, 60 phones allow privacy\.dropout 0\.44"):
        SumBudget(config_of("privacy.dropout=0.47"), GROUPS, 60)
    SumBudget(config_of("privacy.dropout=0.6", "privacy.sums=plain"), GROUPS, 200)
