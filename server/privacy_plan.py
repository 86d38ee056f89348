"""Tell what a run will cost in privacy and how precise its sums will be, before it runs: no data is read.

It is assumed that every phone of the cohort answers and that phones are spread evenly over the clusters.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from fedcaptor.common.config import Config
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.privacy.zcdp import PERIOD_DAYS, epsilon, noise_multiplier, to_epsilon
from fedcaptor.common.statistics import COOCCURRENCE, LOOK, MOMENTS, SCORES, TOPICS, USAGE, Precision
from fedcaptor.server.budget import SumBudget, steps, steps_of

DISHONEST = (0.1, 0.2)


@dataclass(frozen=True)
class PlannedSum:
    """Describe one sum of `length` entries of `bits` bits.

    `rho` and `epsilon` are of this sum alone, `composed` is the ε with all before it; None without noise. `entry`:
    standard deviation of one entry of the sum, in the clip's units; `deviation`: of the figure made from it,
    named by `unit`; `phones`: phones in a cohort for which it is at most `target`.
    """

    name: str
    length: int
    bits: int
    clip: float
    noise_multiplier: float
    rho: float | None
    epsilon: float | None
    composed: float | None
    entry: float
    deviation: float
    unit: str
    target: float
    phones: int


@dataclass(frozen=True)
class PrivacyPlan:
    """Describe a run's sums and what they come to.

    `rounds`: how many of them within 90 days `epsilon` is planned for, None: all of the run; `later`: how many fit into
    90 days without the first one. `year`: ε at δ of spending the whole budget in each of the `periods` that a year
    touches. `dishonest`: ε of the run if that share of the cohort leaves its noise out; `epsilon` counts the configured
    share, and no repetition. `reserve`: how many sums may be repeated after their vectors had left; `epsilon_reserve`:
    ε with as many repetitions of the most expensive one. `smallest`: phones, noise included, below which a cluster is
    not published.
    """

    sums: tuple[PlannedSum, ...]
    phones: int
    cohort: int
    survivors: int
    clusters: int
    delta: float
    rounds: int | None
    later: int | None
    epsilon: float | None
    reserve: int
    epsilon_reserve: float | None
    periods: int
    year: float | None
    dishonest: dict[float, float]
    smallest: float
    marks: tuple[str, ...]


def plan_sums(config: Config, groups: ChannelGroups) -> PrivacyPlan:
    """Plan the sums of a run over `population.phones`, as `SumBudget` divides ε among them.

    Raises PrivacyError when the cohort is too small or ε is out of reach.
    """
    budget, privacy = SumBudget(config, groups, config.population.phones), config.privacy
    clusters = config.clusters.k or min(config.clusters.most, groups.classes)
    pooled = sum(min(config.scores.clusters_per_layer, group.channels) for group in groups.prunable)
    order = steps(config)
    looks = config.domain.looks
    blocks = {SCORES: pooled, COOCCURRENCE: COOCCURRENCE.blocks(groups), LOOK: looks, MOMENTS: looks}
    specs = [budget.spec(step, blocks.get(step.statistic, clusters)) for step in order]
    sums, spent = [], 0.0
    for step, spec in zip(order, specs, strict=True):
        rho = budget.charge(spec)
        spent += rho or 0.0
        sums.append(_planned(spec, rho, spent, privacy.delta, step.statistic.precision(config, groups, clusters)))
    usage = next(one for step, one in zip(order, sums, strict=True) if step.statistic in (USAGE, TOPICS))
    periods = math.ceil(365 / PERIOD_DAYS)
    renewed = privacy.noise and config.planned_rounds != config.run.rounds
    return PrivacyPlan(
        sums=tuple(sums),
        phones=config.population.phones,
        cohort=budget.cohort,
        survivors=budget.survivors,
        clusters=clusters,
        delta=privacy.delta,
        rounds=config.planned_rounds if renewed else None,
        later=_later(config, budget) if renewed else None,
        epsilon=budget.epsilon(specs),
        reserve=privacy.reserve,
        epsilon_reserve=budget.epsilon([*specs, *budget.reserved(specs)]),
        periods=periods,
        year=year(privacy.epsilon, privacy.delta, periods) if privacy.noise else None,
        dishonest={share: epsilon(specs, privacy.delta, share) for share in DISHONEST} if privacy.noise else {},
        smallest=privacy.min_cohort + 2 * usage.entry * math.sqrt(groups.classes),
        marks=tuple(config.marks(simulated=False)),
    )


def year(budget_epsilon: float, delta: float, periods: int) -> float:
    """Return the ε at `delta` of a phone that spends the whole ε in each of `periods` periods."""
    rho = 1 / (2 * noise_multiplier(budget_epsilon, delta, 1) ** 2)
    return to_epsilon([rho] * periods, delta)


def _later(config: Config, budget: SumBudget) -> int:
    """Return how many rounds other than the first fit into one budget with its reserve."""
    one = [budget.spec(step, None) for step in steps_of(config, config.planned_rounds + 1)]
    fitting = itertools.takewhile(lambda n: budget.fits(n * one, one, config.privacy.reserve), itertools.count())
    return sum(1 for _ in fitting)


def _planned(spec: SumSpec, rho: float | None, spent: float, delta: float, precision: Precision) -> PlannedSum:
    entry = spec.deviation
    return PlannedSum(
        name=spec.name,
        length=spec.length,
        bits=spec.bits,
        clip=spec.clip,
        noise_multiplier=spec.noise_multiplier,
        rho=rho,
        epsilon=None if rho is None else to_epsilon([rho], delta),
        composed=None if rho is None else to_epsilon([spent], delta),
        entry=entry,
        deviation=entry * precision.per_entry / spec.cohort,
        unit=precision.figure,
        target=precision.target,
        # the noise of a whole sum hardly depends on its phones
        phones=max(spec.min_cohort, math.ceil(entry * precision.per_entry / precision.target)),
    )
