"""Tell what local answers will cost a run, before it is run, with masked sums of that scenario beside them.

It is assumed that every phone answers and that phones are spread evenly over the clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedcaptor.common.config import Config
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.privacy.zcdp import PERIOD_DAYS
from fedcaptor.common.statistics import USAGE
from fedcaptor.server.local import LocalBudget, smallest
from fedcaptor.server.privacy_plan import plan_sums


@dataclass(frozen=True)
class MaskedFigures:
    """Describe masked sums of this scenario at its ε and `delta`: a share's `deviation`, the `phones` that it takes."""

    epsilon: float | None
    delta: float
    deviation: float
    phones: int


@dataclass(frozen=True)
class LocalPlan:
    """Describe one answer of `length` bits.

    A bit is one with probability `present` for the phone's own pair, `absent` for others.

    `deviation`: standard deviation of a class's share in a cluster's usage, from the answers of its phones alone and
    before it is limited to shares; `phones_for`: phones in all for which it is at most `target`. `year`: ε at δ = 0 of
    an answer in each of the `periods` that a year touches. `smallest`: phones below which a cluster joins another.
    `masked`: None where `masked_error` says why there are no masked sums.
    """

    phones: int
    cohort: int
    clusters: int
    classes: int
    length: int
    present: float
    absent: float
    epsilon: float
    deviation: float
    target: float
    phones_for: int
    smallest: float
    periods: int
    year: float
    masked: MaskedFigures | None
    masked_error: str
    marks: tuple[str, ...]


def plan_local_answers(config: Config, groups: ChannelGroups) -> LocalPlan:
    """Plan the one answer that each phone gives in a run. Raises PrivacyError where ε is out of reach."""
    budget = LocalBudget.of(config.privacy, groups.classes, config.population.phones, config.rounds.cohort)
    spec, clusters = budget.spec, config.clusters.k or min(config.clusters.most, groups.classes)
    periods, target = math.ceil(365 / PERIOD_DAYS), USAGE.precision(config, groups, clusters).target
    masked, error = _masked(config, groups)
    return LocalPlan(
        phones=config.population.phones,
        cohort=budget.cohort,
        clusters=clusters,
        classes=spec.classes,
        length=spec.length,
        present=spec.present,
        absent=spec.absent,
        epsilon=spec.epsilon,
        deviation=spec.share_deviation(budget.cohort / clusters),
        target=target,
        phones_for=math.ceil(clusters * (spec.share_deviation(1) / target) ** 2),
        smallest=smallest(spec, budget.cohort),
        periods=periods,
        year=periods * spec.epsilon,
        masked=masked,
        masked_error=error,
        marks=tuple(config.marks(simulated=False)),
    )


def _masked(config: Config, groups: ChannelGroups) -> tuple[MaskedFigures | None, str]:
    privacy = config.privacy.model_copy(update={"sums": "masked"})
    try:
        found = plan_sums(config.model_copy(update={"privacy": privacy}), groups)
    except PrivacyError as error:
        return None, str(error)
    usage = next(one for one in found.sums if one.name == "1-usage-1")
    return MaskedFigures(found.epsilon, found.delta, usage.deviation, usage.phones), ""
