"""The server's side of a run, top to bottom: usage, scores, plans, delivery, outcome.

Every phase is memoised in the journal, so a restarted server replays what is finished and goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.serverapp import Grid

from fedcaptor.common import statistics, tiers
from fedcaptor.common.arrays import Floats
from fedcaptor.common.config import Config
from fedcaptor.common.filter_clusters import filter_clusters
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.preference import importance, join, layer_slices, normalise, share_out
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.forward import normalise as to_input
from fedcaptor.common.torch_engine.scores import taylor_scores
from fedcaptor.server import catalogue, clusters, local
from fedcaptor.server.budget import Step, SumBudget, steps
from fedcaptor.server.catalogue import Catalogue
from fedcaptor.server.collect import Courier, Tally
from fedcaptor.server.journal import Journal, Result
from fedcaptor.server.masked import Lost
from fedcaptor.server.painting import Visualisation
from fedcaptor.server.planning import ClusterPlan, Reference, plan_cluster
from fedcaptor.server.submodels import deliver_submodels
from fedcaptor.server.visualise import visualise

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Published:
    """What a round ends with. `counts` [K]: estimated phones; `fleet` [K, len(OUTCOME)]: noisy sums of outcomes, None
    where answers are local.
    """

    round: int
    centroids: Floats
    counts: Floats
    catalogue: Catalogue
    fleet: Floats | None
    delivered_bytes: float


class Flow:
    """One run. `folder`: for pictures in progress. `on_progress(phase, done, total)`; `on_phase(self)` after each
    phase. `reference`: the server's own images.
    """

    def __init__(
        self,
        config: Config,
        grid: Grid,
        base: BaseModel,
        reference: Reference,
        journal: Journal,
        folder: Path,
        courier: Courier,
        on_progress: OnProgress = lambda phase, done, total: None,
        on_phase: Callable[[Flow], None] = lambda flow: None,
    ) -> None:
        tiers.check(config, base.groups)
        self.config, self.base, self.reference, self.journal = config, base, reference, journal
        self.nodes = sorted(grid.get_node_ids())
        self.budget = budget_of(config, base.groups, len(self.nodes))
        self.sums: list[Any] = []  # a SumSpec each, or the one LocalSpec
        self.phases: list[dict[str, Any]] = []
        self.atlas: dict[str, npt.NDArray[Any]] = {}
        self._folder, self._courier = folder, courier
        self._on_progress, self._on_phase = on_progress, on_phase
        self.published: list[Published] = []

    def run(self) -> list[Published]:
        """All rounds. Raises PrivacyError when a cohort is too small to publish."""
        preference: npt.NDArray[Any] | None = None
        centroids, counts = None, np.zeros(0)
        for round in range(1, self.config.run.rounds + 1):
            plan = [step for step in steps(self.config) if step.round == round]
            if not isinstance(self.budget, local.LocalBudget):
                centroids, counts = self._usage([s for s in plan if s.kind == "usage"], centroids)
            elif centroids is None:  # asked again, phones would answer the same
                centroids, counts = self._answers(self.budget)
            if round == 1:
                preference = self._preference([s for s in plan if s.kind == "scores"])
            made = self._plans(round, centroids, preference)
            delivered = self._deliver(round, centroids, made, preference)
            fleet = self._outcome([s for s in plan if s.kind == "outcome"], centroids)
            self.published.append(Published(round, centroids, counts, made, fleet, delivered))
            self._on_phase(self)
        return self.published

    @property
    def epsilon(self) -> float | None:
        """ε of all sums so far for a phone that answered each; None without noise."""
        return self.budget.epsilon(self.sums)

    @property
    def epsilon_server(self) -> float | None:
        """The same towards a server that deviates."""
        return self.budget.epsilon_server(self.sums)

    def _phase(self, round: int, name: str, compute: Callable[[], Result]) -> Result:
        result = self.journal.phase(round, name, compute)
        seconds = self.journal.seconds()[round, name]
        tally = result[0].get("tally", Tally().as_dict())
        self.phases.append({"round": round, "phase": name, "seconds": seconds, **tally})
        self._on_phase(self)
        return result

    def _spec(self, step: Step, blocks: int) -> SumSpec:
        assert isinstance(self.budget, SumBudget)
        return self.budget.spec(step, blocks)

    def _sum(self, step: Step, tensors: dict[str, npt.NDArray[Any]], blocks: int) -> Floats:
        spec = self._spec(step, blocks)

        def compute() -> Result:
            nodes = self._cohort(spec.cohort, spec.digest)
            try:
                total, tally = self._courier.sum(step.round, step.kind, spec, tensors, nodes)
            except Lost as lost:
                self.journal.lose(step.round, step.name, lost.reason)
                raise
            self._refuse(step.round, step.name, tally)
            return {"tally": tally.as_dict()}, {"total": total}

        _, stored = self._phase(step.round, step.name, compute)
        self.sums.append(spec)
        return np.asarray(stored["total"])

    def _refuse(self, round: int, name: str, tally: Tally) -> None:
        for reason, count in tally.refused.items():
            self.journal.refuse(round, name, reason, count)

    def _cohort(self, size: int, digest: str) -> list[int]:
        """The phones asked: all, or a sample drawn by the sum's digest, the same after a restart."""
        if size >= len(self.nodes):
            return self.nodes
        rng = np.random.default_rng([self.config.run.seed, int(digest[:15], 16)])
        return sorted(rng.choice(self.nodes, size, replace=False).tolist())

    def _answers(self, budget: local.LocalBudget) -> tuple[Floats, Floats]:
        """Centroids and counts from every phone's own answer, which is forgotten when the phase ends."""
        spec, round, name = budget.spec, 1, "usage-0"

        def compute() -> Result:
            answers = local.Answers(spec, budget.cohort)
            tally = self._courier.answers(round, spec, self._cohort(budget.cohort, spec.digest), answers.add)
            self._refuse(round, name, tally)
            centroids, counts = local.published(answers, self.config.clusters, self.config.run.seed)
            return {"tally": tally.as_dict()}, {"centroids": centroids, "counts": counts}

        _, stored = self._phase(round, name, compute)
        self.sums.append(spec)
        return _as_sent(stored["centroids"]), stored["counts"]

    def _usage(self, plan: list[Step], centroids: Floats | None) -> tuple[Floats, Floats]:
        classes, settings = self.base.groups.classes, self.config.clusters
        counts = np.zeros(0)
        for step in plan:
            if centroids is None:
                total = self._sum(step, {}, 1)
                k = settings.k or min(settings.most, classes)
                centroids = clusters.first_centroids(total, classes, k, self.config.run.seed)
                continue
            sent = np.round(centroids, 6).astype(np.float32)
            total = self._sum(step, {"centroids": sent}, len(sent))
            deviation = self._spec(step, len(sent)).deviation
            centroids, counts = clusters.next_centroids(total, sent.astype(np.float64), deviation)
            floor = self.config.privacy.min_cohort + 2 * deviation * float(np.sqrt(classes))
            centroids, counts = clusters.publishable(centroids, counts, floor, settings.alike, settings.k == 0)
        assert centroids is not None
        return _as_sent(centroids), counts

    def _preference(self, plan: list[Step]) -> npt.NDArray[np.float32] | None:
        """Filter preference [F, C]: pictures and the phones' private scores, both halves joined."""
        visual = self._visual()
        settings, groups = self.config.scores, self.base.groups
        pool = filter_clusters(visual, groups, settings.clusters_per_layer, self.config.run.seed)
        for group, rows in zip(groups.prunable, layer_slices(groups), strict=True):
            self.atlas[f"profile.{group.name}"] = visual[rows]
            self.atlas[f"cluster.{group.name}"] = pool[rows]
        if not plan:
            return None
        total = self._sum(plan[0], {"pool": pool.astype(np.int32)}, int(pool.max()) + 1)
        mean, presence = statistics.scores_mean(total, len(groups.prunable), groups.classes)
        measured = share_out(mean, pool, visual)
        joined = join(measured, presence, visual, 1 - settings.measured, settings.shrink)
        for group, rows in zip(groups.prunable, layer_slices(groups), strict=True):
            self.atlas[f"profile.{group.name}"] = joined[rows]
        return joined

    def _visual(self) -> npt.NDArray[np.float32]:
        groups = self.base.groups
        if not self.config.visualise.enabled:
            x = to_input(self.reference.x[:512], self.base.mean, self.base.std)
            scores = taylor_scores(self.base.module, groups, x, self.reference.y[:512])
            profile = normalise(list(scores.scores.values()))
            return np.asarray((profile + 1e-9) / (profile + 1e-9).sum(1, keepdims=True), dtype=np.float32)

        def compute() -> Result:
            settings = Visualisation(steps=self.config.visualise.steps, seed=self.config.run.seed)
            found = visualise(
                self.base, settings, self._folder, lambda done, total: self._on_progress("visualise", done, total)
            )
            tensors: dict[str, npt.NDArray[Any]] = {}
            for name, seen in found.items():
                tensors |= {f"picture.{name}": seen.pictures, f"profile.{name}": seen.profile}
            return {}, tensors

        _, stored = self._phase(1, "visualise", compute)
        self.atlas |= stored
        return np.concatenate([stored[f"profile.{group.name}"] for group in groups.prunable])

    def _plans(self, round: int, centroids: Floats, preference: npt.NDArray[Any] | None) -> Catalogue:
        settings = self.config

        def one(centroid: Floats) -> list[ClusterPlan]:
            factors = importance(self.base.groups, preference, centroid, settings.scores.weight)
            return plan_cluster(
                self.base, centroid, self.reference, settings.planner, factors, settings.run.seed, settings.tiers
            )

        def compute() -> Result:
            made: list[ClusterPlan] = []
            for k, centroid in enumerate(centroids):
                made += one(centroid)
                self._on_progress("plans", k + 1, len(centroids))
            return catalogue.pack(made, self.base.groups)

        return catalogue.unpack(*self._phase(round, "plans", compute), self.base.groups)

    def _deliver(self, round: int, centroids: Floats, made: Catalogue, preference: npt.NDArray[Any] | None) -> float:
        """Payload bytes that one phone fetched, on average."""

        def compute() -> Result:
            plans = made.plans if self.config.delivery.plans else []
            tensors = catalogue.offered(self.config, self.reference, self.base.groups, centroids, plans, preference)
            request = catalogue.offer(self.config, self._courier, round, tensors, plans)
            if self.config.delivery.mode == "submodel":
                tally = deliver_submodels(self._courier, request, tensors, made.plans, made.states, self.nodes)
            else:
                _, tally = self._courier.deliver(request, tensors, self.nodes)
            self._refuse(round, "deliver", tally)
            return {"tally": tally.as_dict()}, {}

        outcome, _ = self._phase(round, "deliver", compute)
        return float(outcome["tally"]["bytes_down"]) / max(len(self.nodes), 1)

    def _outcome(self, plan: list[Step], centroids: Floats) -> Floats | None:
        if not plan:
            return None
        total = self._sum(plan[0], {"centroids": centroids.astype(np.float32)}, len(centroids))
        return total.reshape(len(centroids), len(statistics.OUTCOME))


def budget_of(config: Config, groups: ChannelGroups, phones: int) -> SumBudget | local.LocalBudget:
    """Of a run over so many phones. Raises PrivacyError when it cannot be met."""
    if config.privacy.sums == "local":
        return local.LocalBudget.of(config.privacy, groups.classes, phones, config.rounds.cohort)
    return SumBudget(config, groups, phones)


def _as_sent(centroids: Floats) -> Floats:
    return np.round(centroids, 6).astype(np.float32).astype(np.float64)
