"""Device tiers limit a submodel by a phone's kind, which the phone alone knows: servers plan for all tiers.

Plans are numbered `cluster · tiers + tier`; without tiers that is the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedcaptor.common.config import Config, Tier
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.planner import Budget, smallest_counts
from fedcaptor.common.random_streams import Stream, stream


def tier_budget(tier: Tier | None, macs: float, multiple: int) -> Budget:
    """Make a budget of a MACs ratio, or of the tier's limit where that is lower, with counts in steps of `multiple`."""
    if tier is None:
        return Budget(macs, multiple)
    return Budget(min(macs, tier.macs), multiple, bytes=tier.bytes or None)


def budget_ladder(tier: Tier | None, groups: ChannelGroups, ratios: Sequence[float], multiple: int) -> list[Budget]:
    """Make budgets for a ladder of MACs ratios within the tier, smallest first.

    The full model ends it, unless the tier's limits exclude that.
    """
    last = [] if fits(tier, groups, {}) else [1.0]
    return list(dict.fromkeys(tier_budget(tier, ratio, multiple) for ratio in [*sorted(ratios), *last]))


def fits(tier: Tier | None, groups: ChannelGroups, counts: Mapping[str, int]) -> bool:
    """Tell whether a model with `counts` channels of each group (absent: all) is within the tier."""
    return not tier_budget(tier, 1.0, 1).broken(groups, counts)


def check(config: Config, groups: ChannelGroups) -> None:
    """Check all tiers before anything is spent on them.

    Raises ConfigError when even the smallest model of all classes is above one.
    """
    smallest = smallest_counts(groups, groups.classes, config.planner.multiple)
    for tier in config.tiers:
        broken = tier_budget(tier, 1.0, 1).broken(groups, smallest)
        if broken:
            raise ConfigError(f"tier {tier.name}: {'; '.join(broken)} is the nearest possible: raise the tier's limits")


def drawn(config: Config, phone: int) -> Tier | None:
    """Draw the tier of a simulated phone by the run's seed and the phone's number; None without tiers."""
    if not config.tiers:
        return None
    shares = np.cumsum([tier.share for tier in config.tiers])
    place = stream(config.run.seed, Stream.TIER, phone).random() * shares[-1]
    return config.tiers[int(np.searchsorted(shares, place, side="right"))]


def as_tier(config: Config, name: str) -> Config:
    """Copy the configuration as a phone of the tier `name` sees it. Raises ConfigError when there is no such tier."""
    names = [tier.name for tier in config.tiers]
    if name not in names:
        raise ConfigError(f"tier is {name!r}, the configuration has {', '.join(names) or 'none'}: give one of these")
    return config.model_copy(update={"personal": config.personal.model_copy(update={"tier": name})})
