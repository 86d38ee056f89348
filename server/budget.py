"""Divide a run's ε: each kind of sum has a noise multiplier, calibrated on all sums of the run together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedcaptor.common.config import Config
from fedcaptor.common.errors import ConfigError, PrivacyError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.privacy.rotation import norm_for
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.privacy.zcdp import epsilon, sum_zcdp
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
    """List all sums of the run in order; there are none where answers are local."""
    if config.privacy.sums == "local":
        return []
    return [
        Step(round, statistic, statistic.first + index)
        for round in range(1, config.run.rounds + 1)
        for statistic in registered()
        for index in range(statistic.sums(config, round))
    ]


class SumBudget:
    """Specify all sums of a run over `phones` phones, which compose to at most the configured ε with its reserve.

    Raises PrivacyError when cohorts are too small or ε is out of reach.
    """

    def __init__(self, config: Config, groups: ChannelGroups, phones: int) -> None:
        self._config, self._groups = config, groups
        self.cohort = min(phones, config.rounds.cohort or phones)
        privacy = config.privacy
        if self.cohort < privacy.min_cohort:
            raise PrivacyError(
                f"the cohort has {self.cohort} phones, privacy.min_cohort is {privacy.min_cohort}: "
                "simulate more phones or lower it (20 at least)"
            )
        self.survivors = max(privacy.min_cohort, math.ceil((1 - privacy.dropout) * self.cohort))
        self._fewest_honest = self._check_masks() if privacy.sums == "masked" else 1
        self._multipliers = self._calibrate() if privacy.noise else {}

    def spec(self, step: Step, blocks: int = 1) -> SumSpec:
        """Return the spec of a step's sum; its length is that of a vector for `blocks` clusters."""
        length = step.statistic.length(self._groups, blocks)
        return self._spec(step, self._multipliers.get(step.kind, 0.0), length)

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
        missing = (self.survivors - self._fewest_honest - 0.5) / self.cohort  # rounded up to whole phones
        return epsilon(specs, self._config.privacy.delta, max(missing, 0.0))

    def reserved(self, specs: Sequence[SumSpec]) -> list[SumSpec]:
        """Return what the budget keeps room for beside all `specs`: the most expensive one, `privacy.reserve` times."""
        dearest = max(specs, key=lambda spec: sum_zcdp(spec, self._config.privacy.noiseless))
        return [dearest] * self._config.privacy.reserve

    def charge(self, spec: SumSpec) -> float | None:
        """Return the zCDP ρ of one sum, None without noise."""
        return sum_zcdp(spec, self._config.privacy.noiseless) if self._config.privacy.noise else None

    def _check_masks(self) -> int:
        """Return the fewest honest phones in any sum that phones let a server unmask.

        Raises PrivacyError where no sum is safe.
        """
        masks = Masks.of(self._config.privacy)
        masks.require(self.cohort)
        return fewest_honest(masks.terms(self.cohort))

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
            lengths = (max(step.statistic.longest(self._groups), 1) for step in plan)
            once = [
                self._spec(step, scale * relative[step.kind], length)
                for step, length in zip(plan, lengths, strict=True)
            ]
            return [*once, *self.reserved(once)]

        low, high = 0.0, 1.0
        while epsilon(specs(high), privacy.delta, privacy.noiseless) > privacy.epsilon:
            low, high = high, 2 * high
            if high > 1e6:
                raise PrivacyError(
                    f"privacy.epsilon {privacy.epsilon} is out of reach: raise it, or lower dishonest or corrupted"
                )
        for _ in range(40):
            middle = float(np.mean([low, high]))
            fits = epsilon(specs(middle), privacy.delta, privacy.noiseless) <= privacy.epsilon
            low, high = (low, middle) if fits else (middle, high)
        return {kind: high * factor for kind, factor in relative.items()}


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
