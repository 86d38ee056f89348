"""Run a federation on the server: rounds of phases, each stored in the journal when it is finished.

A restarted server reads the finished phases back and goes on. So does one that was started for some rounds alone: which
phones a round has is decided when it begins, and what it costs is looked at before anybody is asked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedcaptor.common.adaptation import Adaptation
from fedcaptor.common.arrays import Array, Floats, Tensors
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.config import Config
from fedcaptor.common.errors import PostponedError, PrivacyError
from fedcaptor.common.privacy.zcdp import PERIOD_DAYS
from fedcaptor.common.progress import OnProgress
from fedcaptor.common.random_streams import stream_of_digest
from fedcaptor.common.statistics import Statistic
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.server.budget import Step, steps_of
from fedcaptor.server.calibrate import calibrate
from fedcaptor.server.cluster_submodels import ClusterSubmodels
from fedcaptor.server.collect import Courier, Tally
from fedcaptor.server.journal import Journal, Result
from fedcaptor.server.masked import Lost
from fedcaptor.server.period import PERIOD_SECONDS, Charge, counted, day_of, fits_from
from fedcaptor.server.planning import Reference
from fedcaptor.server.record import Delivered, LookRecord, PhaseRecord, RoundRecord, RunRecord

OnPhase = Callable[[RunRecord], None]
"""Called with the run so far after each phase."""


class Budget(Protocol):
    """Tell how a run's ε is spent: by sums (`SumBudget`) or by each phone's own answer (`LocalBudget`)."""

    @property
    def cohort(self) -> int:
        """The number of phones asked in a sum."""

    @property
    def spec(self) -> Any:
        """The spec of one sum, by its step and blocks; of local answers the spec itself."""

    def epsilon(self, specs: Sequence[Any]) -> float | None:
        """Return the ε of answering all `specs`; None without noise."""

    def epsilon_server(self, specs: Sequence[Any]) -> float | None:
        """Return the ε of answering all `specs` towards a server that deviates from the protocol."""

    def describe(self, spec: Any) -> dict[str, Any]:
        """Return what the run's details say of one `spec`."""

    def for_phones(self, phones: int) -> Budget:
        """Return the budget of a later round over so many phones, each of which is charged no more than in this one.

        Raises PrivacyError when they are too few.
        """

    def fits(self, answered: Sequence[Any], round: Sequence[Any], spare: int) -> bool:
        """Tell whether the sums of a `round`, the dearest `spare` times more, stay within ε of those `answered`."""


PhonesOf = Callable[[int, Callable[[Sequence[int]], Budget]], tuple[Sequence[int], Budget]]
"""Return the phones of a round, and its budget as the given function makes it, which may raise PostponedError."""


@dataclass(frozen=True)
class Phases:
    """List the phases of a round in their order; each takes the flow and may be exchanged. `server/phases.py` has ours.

    - `adapt(flow, round)` returns how the base model is adapted to phones' photos; None where it is not.
    - `cluster(flow, round, centroids, counts)` returns centroids [K, classes] and phones of each [K], from those of the
      round before; the first round has no centroids (None).
    - `prefer(flow)` returns the filter preference [F, classes], once a run; None where there is none.
    - `plan(flow, round, centroids, preference)` returns the submodels of all clusters.
    - `deliver(flow, round, centroids, submodels, preference)` returns what one phone fetched.
    - `evaluate(flow, round, centroids)` returns sums of the phones' outcomes [K, figures], or None.
    - `collect(flow, round, centroids)` returns other registered statistics, by name.
    """

    adapt: Callable[[Flow, int], Adaptation | None]
    cluster: Callable[[Flow, int, Floats | None, Floats], tuple[Floats, Floats]]
    prefer: Callable[[Flow], Array | None]
    plan: Callable[[Flow, int, Floats, Array | None], ClusterSubmodels]
    deliver: Callable[[Flow, int, Floats, ClusterSubmodels, Array | None], Delivered]
    evaluate: Callable[[Flow, int, Floats], Floats | None]
    collect: Callable[[Flow, int, Floats], dict[str, Any]]


@dataclass(eq=False)
class Flow:
    """Hold one run and its progress; `fedcaptor.server.start.open_run` makes it.

    `nodes`: ids of the phones of the round in progress, at first of the first one; `budget`: that of the round.
    `phones_of`: gives both for a later round. `others`: nodes that were found to have other weights. `reference`: the
    server's own images. `pictures`: folder for pictures in progress.
    """

    config: Config
    base: BaseModel
    reference: Reference
    nodes: Sequence[int]
    journal: Journal
    courier: Courier
    budget: Budget
    phones_of: PhonesOf
    phases: Phases
    pictures: Path
    on_progress: OnProgress
    on_phase: OnPhase

    def __post_init__(self) -> None:
        self._first_budget = self.budget
        self._period = PERIOD_SECONDS if self.config.privacy.rounds_per_period else math.inf
        self._begun, self._further = 0.0, 0
        self._most: tuple[float | None, float | None] = (None, None)  # ε of the dearest period until the round began
        self.others: frozenset[int] = frozenset()
        self._charges: list[Charge] = []
        self._in_vain: dict[Step, list[Charge]] = {}
        self._phases: list[PhaseRecord] = []
        self._rounds: list[RoundRecord] = []
        self.atlas: dict[str, Array] = {}
        self.adaptation: Adaptation | None = None
        self.looks: tuple[LookRecord, ...] = ()
        self.statistics: dict[str, Any] = {}

    def in_looks(self) -> Iterator[tuple[BaseModel, Reference]]:
        """Yield, for each look of phones' photos, the base model as adapted to it, and the reference images rendered in
        it; without an adaptation both as they are, once.
        """
        if self.adaptation is None:
            yield self.base, self.reference
            return
        for look, moments in enumerate(self.adaptation.moments):
            base = self.base.adapted(moments) if moments.any() else self.base
            yield base, Reference(self.adaptation.render(self.reference.x, look), self.reference.y)

    @cached_property
    def calibrations(self) -> list[Calibration]:
        """Return the base model's calibration by the reference images, in each look; fitted once a run.

        Of synthetic images the network is sure because they were made so: they say nothing of photos.
        """
        if self.reference.synthetic:
            return [Calibration.none(self.base.groups.classes)]
        return [calibrate(base.scores(reference.x), reference.y) for base, reference in self.in_looks()]

    def run(self, rounds: int = 0) -> RunRecord:
        """Run all rounds that are left, or at most so many `rounds` further ones; earlier ones are read back.

        Raises PrivacyError when a cohort is too small to publish, Lost when a sum came to nothing, PostponedError when
        a round has too few phones or would exceed the budget of a period.
        """
        preference: Array | None = None
        centroids, counts = None, np.zeros(0)
        for round in range(1, self.config.run.rounds + 1) if self.config.run.rounds else count(1):
            if not self._is_over(round):
                if rounds and self._further == rounds:
                    break
                self._further += 1
            self._begin(round)
            self.adaptation = self.phases.adapt(self, round)
            centroids, counts = self.phases.cluster(self, round, centroids, counts)
            if round == 1:
                preference = self.phases.prefer(self)
            submodels = self.phases.plan(self, round, centroids, preference)
            delivered = self.phases.deliver(self, round, centroids, submodels, preference)
            fleet = self.phases.evaluate(self, round, centroids)
            self.statistics |= self.phases.collect(self, round, centroids)
            epsilon = self._epsilons[0]
            self._rounds.append(RoundRecord(round, centroids, counts, submodels, fleet, delivered, epsilon))
            self.journal.phase(round, "end", _nothing)
            self.on_phase(self.record)
        return self.record

    def _is_over(self, round: int) -> bool:
        return self.journal.stored(round, "end") is not None

    def _begin(self, round: int) -> None:
        """Decide on the phones of a round, and see that they can afford it."""
        if not self._is_over(round):
            self._require_room(round)
        if self._rounds:
            self.others = self._rounds[-1].delivered.other_weights
        if round > 1:
            self.nodes, self.budget = self.phones_of(round, lambda nodes: self._budget_of(round, nodes))
        self._most = self._epsilons
        self.journal.phase(round, "begin", _nothing)
        self._begun = self.journal.date(round, "begin")

    def _budget_of(self, round: int, nodes: Sequence[int]) -> Budget:
        others = len(self.others.intersection(nodes))
        try:
            return self._first_budget.for_phones(len(nodes) - others)
        except PrivacyError as error:
            raise PostponedError(
                "phones",
                f"round {round} cannot begin: {len(nodes)} phones are connected, {others} of them with other weights; "
                f"{error}. Start the run again when more are connected",
            ) from None

    def _require_room(self, round: int) -> None:
        """Raise PostponedError when what is left of a round would exceed the budget of a period, naming the day from
        which it does not; PrivacyError where there is no such day.
        """
        if math.isinf(self._period):
            return
        budget, charges, coming = self._first_budget, self._charged, []
        for step in steps_of(self.config, round):
            spec = budget.spec(step, None)
            charges += [Charge(spec, over, lost=True) for over in self.journal.in_vain(round, step.name)]
            if self.journal.stored(round, step.name) is None:
                coming.append(spec)
            else:
                charges.append(Charge(spec, self.journal.date(round, step.name)))

        def fits(answered: Sequence[Charge]) -> bool:
            spare = self.config.privacy.reserve - sum(charge.lost for charge in answered)
            return budget.fits([charge.spec for charge in answered], coming, max(spare, 0))

        now = self.journal.clock()
        at = fits_from(charges, now, self._period, fits)
        if at == now:
            return
        problem = (
            f"round {round} would exceed epsilon {self.config.privacy.epsilon:g} within {PERIOD_DAYS} days, for which "
            f"{self.config.privacy.rounds_per_period} rounds are planned"
        )
        if at is None:
            raise PrivacyError(f"{problem}, and fits in no later period: start another run")
        raise PostponedError("budget", f"{problem}: it fits from {day_of(at)} on; start the run again then")

    @property
    def record(self) -> RunRecord:
        """Return the run so far."""
        epsilon, epsilon_server = self._epsilons
        return RunRecord(
            config=self.config,
            groups=self.base.groups,
            phones=len(self.nodes),
            rounds=tuple(self._rounds),
            phases=tuple(self._phases),
            sums=tuple(self.budget.describe(charge.spec) for charge in self._charges),
            epsilon=epsilon,
            epsilon_server=epsilon_server,
            refused=self.journal.refused(),
            lost=self.journal.lost(),
            excluded=len(self.journal.excluded()),
            atlas=dict(self.atlas),
            statistics=dict(self.statistics),
            looks=self.looks,
        )

    def phase(self, round: int, name: str, compute: Callable[[], Result]) -> Result:
        """Return the result of a phase, from the journal or, once, from `compute`."""
        self.courier.activity.begin(round, name)
        result = self.journal.phase(round, name, compute)
        seconds = self.journal.seconds()[round, name]
        tally = result[0].get("tally", Tally().as_dict())
        self._phases.append(PhaseRecord(round=round, phase=name, seconds=seconds, **tally))
        self.on_phase(self.record)
        return result

    def steps(self, round: int, *statistics: Statistic) -> list[Step]:
        """List the sums of some statistics in a round."""
        return [step for step in steps_of(self.config, round) if step.statistic in statistics]

    def sum(self, step: Step, tensors: Tensors, blocks: int = 1) -> Any:
        """Ask for one private sum over a cohort and decode it.

        One that was lost after its vectors had left is asked again while `privacy.reserve` has room for it. Raises Lost
        when it came to nothing.
        """
        spec = self.budget.spec(step, blocks)
        self._count_in_vain(step, spec)

        def compute() -> Result:
            while True:
                repeats = min(len(self.journal.in_vain(step.round, step.name)), self.config.privacy.reserve)
                log = self.journal.sum_log(step.round, step.name, repeats * self.config.rounds.attempts)
                asked = self.cohort(spec.digest)
                try:
                    total, tally = self.courier.sum(step.round, step.kind, spec, tensors, asked, log)
                    return self.tallied(step.round, step.name, tally, {"total": total})
                except Lost as lost:
                    self.journal.lose(step.round, step.name, lost.reason, lost.blamed)
                    self._count_in_vain(step, spec)
                    recent = sum(over > self.journal.clock() - self._period for over in self.journal.in_vain())
                    if lost.reason == "early" or recent > self.config.privacy.reserve:
                        raise

        _, stored = self.phase(step.round, step.name, compute)
        self._count_in_vain(step, spec)
        self.charge(spec, self.journal.date(step.round, step.name))
        return step.statistic.decode(np.asarray(stored["total"]), self.base.groups)

    def issued(self, round: int) -> int:
        """Return the number of a round's deliveries, 0 where nobody signs them.

        It is the time in seconds since 1970, above that of the round before, and a restarted server gives it again.
        """
        if self.courier.operator is None:
            return 0
        earlier = self.journal.stored(round - 1, "issued")
        least = 1 + earlier[0]["issued"] if earlier else 1
        found, _ = self.journal.phase(round, "issued", lambda: ({"issued": max(least, int(time.time()))}, {}))
        return int(found["issued"])

    def _count_in_vain(self, step: Step, spec: Any) -> None:
        """Take those sums of a step into the run's ε that phones were charged for, though they came to nothing."""
        dates = self.journal.in_vain(step.round, step.name)
        self._in_vain[step] = [Charge(spec, over, lost=True) for over in dates]

    @property
    def _charged(self) -> list[Charge]:
        """Return all sums that a phone which answered each was charged for."""
        return [*self._charges, *chain.from_iterable(self._in_vain.values())]

    @property
    def _epsilons(self) -> tuple[float | None, float | None]:
        """Return the largest ε of one period so far, and that towards a server that deviates."""
        specs = [charge.spec for charge in counted(self._charged, self._begun, self._period)]
        now = self.budget.epsilon(specs), self.budget.epsilon_server(specs)
        return _larger(now[0], self._most[0]), _larger(now[1], self._most[1])

    def charge(self, spec: Any, over: float = math.inf) -> None:
        """Count a sum that was answered, or the phones' own answers, in the run's ε; `over`: when, infinite: always."""
        self._charges.append(Charge(spec, over))

    def tallied(self, round: int, name: str, tally: Tally, tensors: Tensors) -> Result:
        """Make the result of a phase that asked phones; refused replies are counted in the journal."""
        for reason, number in tally.refused.items():
            self.journal.refuse(round, name, reason, number)
        return {"tally": tally.as_dict()}, dict(tensors)

    def cohort(self, digest: str) -> Sequence[int]:
        """Return the phones to ask: all, or a sample drawn by the sum's digest, which a restart draws again.

        Those are left out that a sum was lost by, or that refused the last delivery because they have other weights.
        """
        excluded = self.journal.excluded() | self.others
        nodes = [node for node in self.nodes if node not in excluded] if excluded else self.nodes
        if self.budget.cohort >= len(nodes):
            return nodes
        rng = stream_of_digest([self.config.run.seed], digest, 15)
        return sorted(rng.choice(nodes, self.budget.cohort, replace=False).tolist())


def _nothing() -> Result:
    """Return the result of a phase that marks the beginning or the end of a round."""
    return {}, {}


def _larger(one: float | None, other: float | None) -> float | None:
    return max(found) if (found := [value for value in (one, other) if value is not None]) else None
