"""Divide ε: each kind of sum has a noise multiplier, calibrated on all sums together that share one budget.

These are all sums of the run, or with `privacy.rounds_per_period` those of its first rounds within 90 days: no other 90
days have dearer ones, as the first round has sums that later ones have not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from fedcaptor.common.config import Config
from fedcaptor.common.errors import ConfigError, PrivacyError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.privacy.rotation import norm_for
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.privacy.zcdp import epsilon, sum_zcdp, to_epsilon
from fedcaptor.common.secure.topology import fewest_honest
from fedcaptor.common.statistics import Statistic, registered
from fedcaptor.server.mask_sizes import Masks

_RESOLUTION = 24
"""Quanta: a phone's share of the noise has a standard deviation of at least about this many, or, without noise, a
clipped report's norm is 2^this/8 quanta."""

_ROTATED_RESOLUTION = 4
"""Quanta of a share in rotated sums, which are rounded without a bias: that adds 1/64 to a share's variance at most."""

_ROUNDING_GROWTH = 0.02
"""How much the squared norm of a rotated vector, and with it the noise, may grow by rounding."""

_HEADROOM = 2.0**30
"""Quanta that a whole sum may reach, noise included: half of what its integers hold."""

_ROUNDING = 1e-9
"""Relative, of a budget that is met exactly."""


@dataclass(frozen=True)
class Step:
    """Name one sum of the run: its `statistic`, its round (from 1), and its `index` among its kind in the round."""

    round: int
    statistic: Statistic
    index: int

    @property
    def kind(self) -> str:
        """Return which part of the budget it spends, as named in messages."""
        return self.statistic.kind

    @property
    def name(self) -> str:
        """Return the name of its phase in the round."""
        return f"{self.kind}-{self.index}"


def steps(config: Config) -> list[Step]:
    """List the sums that share one budget, in order; there are none where answers are local."""
    return [step for round in range(1, config.planned_rounds + 1) for step in steps_of(config, round)]


def steps_of(config: Config, round: int) -> list[Step]:
    """List the sums of a round, in order."""
    if config.privacy.sums == "local":
        return []
    return [
        Step(round, statistic, statistic.first + index)
        for statistic in registered()
        for index in range(statistic.sums(config, round))
    ]


@lru_cache(maxsize=256)
def _fewest_honest(masks: Masks, cohort: int) -> int:
    """Return the fewest honest phones in any sum over a cohort that phones let a server unmask."""
    return fewest_honest(masks.terms(cohort))


class SumBudget:
    """Specify all sums of rounds over `phones` phones. `steps` of them compose to at most ε with its reserve.

    `first`: the budget of the run's first round, which no sum of a later round may exceed in its charge to a phone.
    Raises PrivacyError when cohorts are too small or ε is out of reach.
    """

    def __init__(self, config: Config, groups: ChannelGroups, phones: int, first: SumBudget | None = None) -> None:
        self._config, self._groups = config, groups
        self.cohort = min(phones, config.rounds.cohort or phones)
        privacy = config.privacy
        if self.cohort < privacy.min_cohort:
            raise PrivacyError(
                f"the cohort has {self.cohort} phones, privacy.min_cohort is {privacy.min_cohort}: "
                "take more phones or lower it (20 at least)"
            )
        self.survivors = max(privacy.min_cohort, math.ceil((1 - privacy.dropout) * self.cohort))
        self._masks = Masks.of(privacy)
        if privacy.sums == "masked":
            self._masks.require(self.cohort)
        self._multipliers: dict[str, float] = {}
        if privacy.noise:
            self._multipliers = self._calibrate() if first is None else self._matched(first)
        self._of_phones = cache(lambda phones: SumBudget(config, groups, phones, self))

    def for_phones(self, phones: int) -> SumBudget:
        """Return the budget of a later round over so many phones, in which no sum costs a phone more than in this one.

        Raises PrivacyError when they are too few.
        """
        return self if min(phones, self._config.rounds.cohort or phones) == self.cohort else self._of_phones(phones)

    def spec(self, step: Step, blocks: int | None = 1) -> SumSpec:
        """Return the spec of a step's sum; its length is that of a vector for `blocks` clusters, None: the longest."""
        multiplier = self._multipliers.get(step.kind, 0.0)
        if self._config.privacy.noise and not multiplier:
            raise PrivacyError(
                f"round {step.round} asks for {step.statistic.name}, for which no noise is planned: let it ask for one "
                f"in the first {self._config.planned_rounds} rounds too"
            )
        if blocks is None:
            return self._longest(step, multiplier)
        return self._spec(step, multiplier, step.statistic.length(self._groups, blocks))

    def epsilon(self, specs: Sequence[SumSpec]) -> float | None:
        """Return the ε of answering all `specs`, None without noise."""
        if not self._config.privacy.noise:
            return None
        return epsilon(specs, self._config.privacy.delta, self._config.privacy.noiseless)

    def epsilon_server(self, specs: Sequence[SumSpec]) -> float | None:
        """Return the ε of answering all `specs` towards a server that deviates from the protocol: it sees the smallest
        masked sum that it can get out of phones, or single vectors where sums are plain. None without noise.
        """
        if not self._config.privacy.noise:
            return None
        return to_epsilon((sum_zcdp(spec, self._missing(spec)) for spec in specs), self._config.privacy.delta)

    def _missing(self, spec: SumSpec) -> float:
        """Return the share of a sum's cohort whose noise is missing in the smallest sum that can be unmasked."""
        fewest = _fewest_honest(self._masks, spec.cohort) if self._config.privacy.sums == "masked" else 1
        return max((spec.min_survivors - fewest - 0.5) / spec.cohort, 0.0)  # rounded up to whole phones

    def reserved(self, specs: Sequence[SumSpec]) -> list[SumSpec]:
        """Return what the budget keeps room for beside all `specs`: the most expensive one, `privacy.reserve` times."""
        return [self._dearest(specs)] * self._config.privacy.reserve

    def fits(self, answered: Sequence[SumSpec], round: Sequence[SumSpec], spare: int) -> bool:
        """Tell whether the sums of a `round`, the dearest `spare` times more, stay within ε of those `answered`."""
        specs = [*answered, *round, *([self._dearest(round)] * spare if round else [])]
        found = self.epsilon(specs)
        return found is None or found <= self._config.privacy.epsilon * (1 + _ROUNDING)

    def _dearest(self, specs: Sequence[SumSpec]) -> SumSpec:
        return max(specs, key=lambda spec: sum_zcdp(spec, self._config.privacy.noiseless))

    def charge(self, spec: SumSpec) -> float | None:
        """Return the zCDP ρ of one sum, None without noise."""
        return sum_zcdp(spec, self._config.privacy.noiseless) if self._config.privacy.noise else None

    def describe(self, spec: SumSpec) -> dict[str, Any]:
        """Return what `details.json` says of a sum."""
        figures = {"clip": spec.clip, "noise_multiplier": spec.noise_multiplier, "rho": self.charge(spec)}
        return {
            "name": spec.name,
            "length": spec.length,
            **figures,
            "deviation": spec.deviation,
            "quantum": 1 / spec.scale,
        }

    def _spec(self, step: Step, multiplier: float, length: int) -> SumSpec:
        clip, rotated = step.statistic.clip, step.statistic.rotated
        share = multiplier / math.sqrt(self.survivors)  # of one phone's noise, in units of clip
        resolution = _ROTATED_RESOLUTION if rotated else _RESOLUTION
        quanta = resolution / share if share else 2.0 ** (_RESOLUTION - 3) / max(self.cohort / 64, 1)
        quanta = max(quanta, norm_for(length, _ROUNDING_GROWTH)) if rotated else quanta
        reach = self.cohort + 12 * multiplier * math.sqrt(self.cohort / self.survivors)
        quanta = min(quanta, _HEADROOM / reach)  # large cohorts: coarser, or their sum could wrap around
        spec = SumSpec(
            name=f"{step.round}-{step.name}",
            length=length,
            clip=clip,
            scale=quanta / clip,
            noise_multiplier=multiplier,
            cohort=self.cohort,
            min_survivors=self.survivors,
            min_cohort=self._config.privacy.min_cohort,
            small_cohorts=self._config.testing.small_cohorts,
            rotated=rotated,
        )
        return replace(spec, bits=spec.least_bits)

    def _calibrate(self) -> dict[str, float]:
        """Find the noise multiplier of each kind of sum.

        ρ is divided as configured; the total is found by bisection on the real specs, τ included.
        """
        privacy, plan = self._config.privacy, steps(self._config)
        number = Counter(step.kind for step in plan)
        relative = {
            kind: math.sqrt(number[kind] / share)
            for kind, share in budget_shares(self._config).items()
            if share and number[kind]
        }

        def specs(scale: float) -> list[SumSpec]:
            once = [self._longest(step, scale * relative[step.kind]) for step in plan]
            return [*once, *self.reserved(once)]

        def fits(scale: float) -> bool:
            return epsilon(specs(scale), privacy.delta, privacy.noiseless) <= privacy.epsilon

        scale = _least(fits, privacy.epsilon)
        return {kind: scale * factor for kind, factor in relative.items()}

    def _matched(self, first: SumBudget) -> dict[str, float]:
        """Find the least noise multiplier of each kind with which no sum costs a phone more than in `first`."""
        noiseless = self._config.privacy.noiseless
        allowed: dict[str, list[tuple[Step, float]]] = {}
        for step in {step.statistic: step for step in steps(self._config)}.values():
            rho = sum_zcdp(first.spec(step, None), noiseless)
            allowed.setdefault(step.kind, []).append((step, rho))

        def least(of_kind: list[tuple[Step, float]]) -> float:
            def fits(multiplier: float) -> bool:
                return all(sum_zcdp(self._longest(step, multiplier), noiseless) <= rho for step, rho in of_kind)

            return _least(fits, self._config.privacy.epsilon)

        return {kind: least(of_kind) for kind, of_kind in allowed.items()}

    def _longest(self, step: Step, multiplier: float) -> SumSpec:
        return self._spec(step, multiplier, max(step.statistic.longest(self._groups), 1))


def _least(fits: Callable[[float], bool], epsilon: float) -> float:
    """Find by bisection the least noise that fits. Raises PrivacyError when none does."""
    low, high = 0.0, 1.0
    while not fits(high):
        low, high = high, 2 * high
        if high > 1e6:
            raise PrivacyError(f"privacy.epsilon {epsilon} is out of reach: raise it, or lower dishonest or corrupted")
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def budget_shares(config: Config) -> dict[str, float]:
    """Return each kind of sum's share of the privacy budget; all add up to 1.

    Raises ConfigError where nothing is left for usage.
    """
    given = {statistic.kind: statistic.share(config) for statistic in registered()}
    known = {kind: share for kind, share in given.items() if share is not None}
    if sum(known.values()) >= 1:
        shares = ", ".join(f"{kind} {share:g}" for kind, share in known.items())
        raise ConfigError(f"statistics take {shares} of the privacy budget, nothing is left for usage: lower a share")
    return {kind: 1 - sum(known.values()) if share is None else share for kind, share in given.items()}
