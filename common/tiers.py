"""Device tiers: what a phone's kind allows, known to the phone alone. Servers plan for every tier and hear of none.

Plans are numbered `cluster · tiers + tier`; without tiers that is the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedcaptor.common.config import Config, Tier
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.planner import Budget
from fedcaptor.common.random_streams import Stream, stream


def within(tier: Tier | None, macs: float, multiple: int) -> Budget:
    """The budget of a MACs ratio, or of the tier's limit where that is lower."""
    if tier is None:
        return Budget(macs, multiple)
    return Budget(min(macs, tier.macs), multiple, bytes=tier.bytes or None)


def rungs(tier: Tier | None, groups: ChannelGroups, ratios: Sequence[float], multiple: int) -> list[Budget]:
    """A ladder of MACs ratios within the tier, smallest first; its limits end it where they exclude the full model."""
    last = [] if fits(tier, groups, {}) else [1.0]
    return list(dict.fromkeys(within(tier, ratio, multiple) for ratio in [*sorted(ratios), *last]))


def fits(tier: Tier | None, groups: ChannelGroups, counts: Mapping[str, int]) -> bool:
    """Whether a model with `counts` channels of each group (absent: all) is within the tier."""
    return not within(tier, 1.0, 1).broken(groups, counts)


def check(config: Config, groups: ChannelGroups) -> None:
    """Raise ConfigError when even the smallest model of all classes is above a tier, before anything is spent on it."""
    smallest = {group.name: min(group.channels, config.planner.multiple) for group in groups.prunable}
    for tier in config.tiers:
        broken = within(tier, 1.0, 1).broken(groups, smallest)
        if broken:
            raise ConfigError(f"tier {tier.name}: {'; '.join(broken)} is the nearest possible: raise the tier's limits")


def drawn(config: Config, phone: int) -> Tier | None:
    """The tier of a simulated phone, by the run's seed and its number; None without tiers."""
    if not config.tiers:
        return None
    shares = np.cumsum([tier.share for tier in config.tiers])
    place = stream(config.run.seed, Stream.TIER, phone).random() * shares[-1]
    return config.tiers[int(np.searchsorted(shares, place, side="right"))]


def as_tier(config: Config, name: str) -> Config:
    """The configuration as a phone of the tier `name` sees it. Raises ConfigError when there is no such tier."""
    names = [tier.name for tier in config.tiers]
    if name not in names:
        raise ConfigError(f"tier is {name!r}, the configuration has {', '.join(names) or 'none'}: give one of these")
    return config.model_copy(update={"personal": config.personal.model_copy(update={"tier": name})})
