"""Run a federation on the server: rounds of phases, each stored in the journal when it is finished.

A restarted server reads the finished phases back and goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedcaptor.common.arrays import Array, Floats, Tensors
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.config import Config
from fedcaptor.common.progress import OnProgress
from fedcaptor.common.random_streams import stream_of_digest
from fedcaptor.common.statistics import Statistic
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.server.budget import Step, steps
from fedcaptor.server.calibrate import calibrate
from fedcaptor.server.cluster_submodels import ClusterSubmodels
from fedcaptor.server.collect import Courier, Tally
from fedcaptor.server.journal import Journal, Result
from fedcaptor.server.masked import Lost
from fedcaptor.server.planning import Reference
from fedcaptor.server.record import Delivered, PhaseRecord, RoundRecord, RunRecord

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


@dataclass(frozen=True)
class Phases:
    """List the phases of a round in their order; each takes the flow and may be exchanged. `server/phases.py` has ours.

    - `cluster(flow, round, centroids, counts)` returns centroids [K, classes] and phones of each [K], from those of the
      round before; the first round has no centroids (None).
    - `prefer(flow)` returns the filter preference [F, classes], once a run; None where there is none.
    - `plan(flow, round, centroids, preference)` returns the submodels of all clusters.
    - `deliver(flow, round, centroids, submodels, preference)` returns what one phone fetched.
    - `evaluate(flow, round, centroids)` returns sums of the phones' outcomes [K, figures], or None.
    - `collect(flow, round, centroids)` returns other registered statistics, by name.
    """

    cluster: Callable[[Flow, int, Floats | None, Floats], tuple[Floats, Floats]]
    prefer: Callable[[Flow], Array | None]
    plan: Callable[[Flow, int, Floats, Array | None], ClusterSubmodels]
    deliver: Callable[[Flow, int, Floats, ClusterSubmodels, Array | None], Delivered]
    evaluate: Callable[[Flow, int, Floats], Floats | None]
    collect: Callable[[Flow, int, Floats], dict[str, Any]]


@dataclass(eq=False)
class Flow:
    """Hold one run and its progress; `fedcaptor.server.start.open_run` makes it.

    `nodes`: ids of its phones. `reference`: the server's own images. `pictures`: folder for pictures in progress.
    """

    config: Config
    base: BaseModel
    reference: Reference
    nodes: Sequence[int]
    journal: Journal
    courier: Courier
    budget: Budget
    phases: Phases
    pictures: Path
    on_progress: OnProgress
    on_phase: OnPhase

    def __post_init__(self) -> None:
        self._specs: list[Any] = []
        self._in_vain: dict[Step, list[Any]] = {}
        self._phases: list[PhaseRecord] = []
        self._rounds: list[RoundRecord] = []
        self.atlas: dict[str, Array] = {}
        self.statistics: dict[str, Any] = {}

    @cached_property
    def calibration(self) -> Calibration:
        """Return the base model's calibration by the reference images, fitted once a run."""
        return calibrate(self.base.scores(self.reference.x), self.reference.y)

    def run(self) -> RunRecord:
        """Run all rounds.

        Raises PrivacyError when a cohort is too small to publish, Lost when a sum came to nothing.
        """
        preference: Array | None = None
        centroids, counts = None, np.zeros(0)
        for round in range(1, self.config.run.rounds + 1):
            centroids, counts = self.phases.cluster(self, round, centroids, counts)
            if round == 1:
                preference = self.phases.prefer(self)
            submodels = self.phases.plan(self, round, centroids, preference)
            delivered = self.phases.deliver(self, round, centroids, submodels, preference)
            fleet = self.phases.evaluate(self, round, centroids)
            self.statistics |= self.phases.collect(self, round, centroids)
            epsilon = self.budget.epsilon(self._charged)
            self._rounds.append(RoundRecord(round, centroids, counts, submodels, fleet, delivered, epsilon))
            self.on_phase(self.record)
        return self.record

    @property
    def record(self) -> RunRecord:
        """Return the run so far."""
        return RunRecord(
            config=self.config,
            groups=self.base.groups,
            phones=len(self.nodes),
            rounds=tuple(self._rounds),
            phases=tuple(self._phases),
            sums=tuple(self.budget.describe(spec) for spec in self._specs),
            epsilon=self.budget.epsilon(self._charged),
            epsilon_server=self.budget.epsilon_server(self._charged),
            refused=self.journal.refused(),
            lost=self.journal.lost(),
            excluded=len(self.journal.excluded()),
            atlas=dict(self.atlas),
            statistics=dict(self.statistics),
        )

    def phase(self, round: int, name: str, compute: Callable[[], Result]) -> Result:
        """Return the result of a phase, from the journal or, once, from `compute`."""
        result = self.journal.phase(round, name, compute)
        seconds = self.journal.seconds()[round, name]
        tally = result[0].get("tally", Tally().as_dict())
        self._phases.append(PhaseRecord(round=round, phase=name, seconds=seconds, **tally))
        self.on_phase(self.record)
        return result

    def steps(self, round: int, *statistics: Statistic) -> list[Step]:
        """List the sums of some statistics in a round."""
        return [step for step in steps(self.config) if step.round == round and step.statistic in statistics]

    def sum(self, step: Step, tensors: Tensors, blocks: int = 1) -> Any:
        """Ask for one private sum over a cohort and decode it.

        One that was lost after its vectors had left is asked again while `privacy.reserve` has room for it. Raises Lost
        when it came to nothing.
        """
        spec = self.budget.spec(step, blocks)
        self._count_in_vain(step, spec)

        def compute() -> Result:
            while True:
                repeats = min(self.journal.in_vain(step.round, step.name), self.config.privacy.reserve)
                log = self.journal.sum_log(step.round, step.name, repeats * self.config.rounds.attempts)
                asked = self.cohort(spec.digest)
                try:
                    total, tally = self.courier.sum(step.round, step.kind, spec, tensors, asked, log)
                    return self.tallied(step.round, step.name, tally, {"total": total})
                except Lost as lost:
                    self.journal.lose(step.round, step.name, lost.reason, lost.blamed)
                    self._count_in_vain(step, spec)
                    if lost.reason == "early" or self.journal.in_vain() > self.config.privacy.reserve:
                        raise

        _, stored = self.phase(step.round, step.name, compute)
        self._count_in_vain(step, spec)
        self.charge(spec)
        return step.statistic.decode(np.asarray(stored["total"]), self.base.groups)

    def _count_in_vain(self, step: Step, spec: Any) -> None:
        """Take those sums of a step into the run's ε that phones were charged for, though they came to nothing."""
        self._in_vain[step] = [spec] * self.journal.in_vain(step.round, step.name)

    @property
    def _charged(self) -> list[Any]:
        """Return the specs of all sums that a phone which answered each was charged for."""
        return [*self._specs, *chain.from_iterable(self._in_vain.values())]

    def charge(self, spec: Any) -> None:
        """Count an answered sum, or the phones' own answers, in the run's ε."""
        self._specs.append(spec)

    def tallied(self, round: int, name: str, tally: Tally, tensors: Tensors) -> Result:
        """Make the result of a phase that asked phones; refused replies are counted in the journal."""
        for reason, count in tally.refused.items():
            self.journal.refuse(round, name, reason, count)
        return {"tally": tally.as_dict()}, dict(tensors)

    def cohort(self, digest: str) -> Sequence[int]:
        """Return the phones to ask: all, or a sample drawn by the sum's digest, which a restart draws again.

        Those that a sum was lost by are left out.
        """
        excluded = self.journal.excluded()
        nodes = [node for node in self.nodes if node not in excluded] if excluded else self.nodes
        if self.budget.cohort >= len(nodes):
            return nodes
        rng = stream_of_digest([self.config.run.seed], digest, 15)
        return sorted(rng.choice(nodes, self.budget.cohort, replace=False).tolist())
