"""Tiers: who is in which, and what it allows."""

import pytest

from fedcaptor.common.config import load_config, parse
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.planner import Budget
from fedcaptor.common.tiers import as_tier, budget_ladder, check, drawn, fits, tier_budget
from tests.common.small_groups import small_groups

TIERS = [{"name": "low", "share": 0.25, "macs": 0.25, "bytes": 5000}, {"name": "high", "share": 0.75}]
CONFIG = parse({"tiers": TIERS})
LOW, HIGH = CONFIG.tiers


def test_a_phone_is_drawn_by_seed_and_number_in_the_configured_shares():
    tiers = [drawn(CONFIG, phone) for phone in range(2000)]
    assert tiers == [drawn(CONFIG, phone) for phone in range(2000)]
    assert 400 < tiers.count(LOW) < 600  # 500 expected, 5 standard deviations
    other = parse({"tiers": TIERS, "run": {"seed": 1}})
    assert tiers != [drawn(other, phone) for phone in range(2000)]
    assert drawn(load_config(), 3) is None


def test_ratios_are_cut_down_to_the_tier():
    groups = small_groups()
    assert budget_ladder(LOW, groups, (0.3, 0.2, 0.5), 8) == [Budget(0.2, 8, bytes=5000), Budget(0.25, 8, bytes=5000)]
    assert budget_ladder(HIGH, groups, (0.3, 0.2), 4) == [Budget(0.2, 4), Budget(0.3, 4)]
    assert budget_ladder(None, groups, (0.3,), 8) == [Budget(0.3, 8)]
    assert tier_budget(LOW, 0.1, 8) == Budget(0.1, 8, bytes=5000)


def test_a_model_fits_where_all_limits_hold():
    groups = small_groups()
    assert fits(None, groups, {})
    assert fits(HIGH, groups, {})
    assert not fits(LOW, groups, {})
    assert fits(LOW, groups, {"a": 2, "b": 2, "c": 2})
    assert not fits(LOW.model_copy(update={"bytes": 100}), groups, {"a": 2, "b": 2, "c": 2})


def test_a_limited_phone_ends_at_its_limits_instead_of_the_full_model():
    groups = small_groups()
    tight, wide = (LOW.model_copy(update={"bytes": groups.file_bytes() + more, "macs": 1.0}) for more in (-1, 0))
    assert budget_ladder(tight, groups, (0.2,), 8)[-1] == Budget(1.0, 8, bytes=tight.bytes)
    assert budget_ladder(wide, groups, (0.2,), 8)[-1] == Budget(0.2, 8, bytes=wide.bytes)


def test_an_impossible_tier_is_refused_before_the_run():
    groups = small_groups()
    check(parse({"tiers": TIERS, "planner": {"multiple": 2}}), groups)
    with pytest.raises(ConfigError, match=r"tier low: MACs budget is 0.25 of the full model, 1 is the nearest"):
        check(CONFIG, groups)  # multiples of 8 leave the small network whole


def test_a_phone_sees_its_own_tier():
    assert CONFIG.own_tier is None
    assert as_tier(CONFIG, "low").own_tier == LOW
    with pytest.raises(ConfigError, match="tier is 'middle', the configuration has low, high"):
        as_tier(CONFIG, "middle")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tiers": TIERS[:1]}, "shares of tiers sum to 0.25, must sum to 1"),
        ({"tiers": [TIERS[1], {"name": "high", "share": 0.25}]}, "named high, high"),
        ({"tiers": [{"name": "Big phones", "share": 1}]}, "tiers.0.name"),
        ({"tiers": [{"name": "a", "share": 1, "mac": 0.2}]}, "tiers.0.mac is unknown: did you mean macs"),
        ({"tiers": TIERS, "personal": {"tier": "middle"}}, "personal.tier is 'middle', tiers are low, high"),
        ({"tiers": TIERS, "delivery": {"mode": "submodel"}}, "tiers need delivery.mode plan"),
    ],
)
def test_senseless_tiers_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        parse(values)
