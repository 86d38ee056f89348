"""The budget of sums over small cohorts, of which the server would take the median."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from fedcaptor.common.config import Config
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.server.budget import Step, SumBudget


@dataclass(frozen=True)
class MedianSpec(SumSpec):
    """A cohort's sum, one of `cohorts` whose median times their number stands for the sum of all."""

    cohorts: int = 1

    @property
    def deviation(self) -> float:
        """Return an entry's: a median of normal values has π/2 times the variance of their mean."""
        return super().deviation * math.sqrt(math.pi / 2 * self.cohorts)


class MedianBudget(SumBudget):
    """Sums of `cohort` phones each at the configured ε: a phone is in one cohort of every sum."""

    def __init__(self, config: Config, groups: ChannelGroups, phones: int, cohort: int) -> None:
        rounds = config.rounds.model_copy(update={"cohort": cohort})
        super().__init__(config.model_copy(update={"rounds": rounds}), groups, phones)
        self._cohorts = phones // cohort

    def spec(self, step: Step, blocks: int | None = 1) -> SumSpec:
        return MedianSpec(**asdict(super().spec(step, blocks)), cohorts=self._cohorts)
