"""Keep the snapshot that operators watch: private sums, and what the server knows anyway.

A thread writes it every few seconds with the phase in progress, so that a run that was killed shows by its heartbeat.
"""

from __future__ import annotations

import logging
import math
import platform
import resource
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fedcaptor.common.config import Config
from fedcaptor.common.errors import FedcaptorError, PostponedError, StateError
from fedcaptor.common.privacy.zcdp import noise_multiplier
from fedcaptor.common.statistics.domain import COUNTED, LOOK
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.server import snapshot
from fedcaptor.server.activity import Activity, Moment
from fedcaptor.server.cluster_names import cluster_names
from fedcaptor.server.energy import energy_weights
from fedcaptor.server.estimates import Estimate, fleet_phones, fleet_ratio
from fedcaptor.server.flow import Flow
from fedcaptor.server.record import RoundRecord, RunRecord
from fedcaptor.server.snapshot import (
    CLUSTERS,
    OTHER,
    Cluster,
    Figure,
    Fleet,
    Look,
    LostSums,
    Messages,
    Phase,
    Present,
    Process,
    RoundSeconds,
    Snapshot,
    Spent,
    Status,
    Tier,
)

SECONDS = 5.0
"""Seconds between two writes of the snapshot."""

logger = logging.getLogger(__name__)


@dataclass
class Monitor:
    """Keep the snapshot in `folder` up to date with a run.

    `weights_bytes`: size of the full model's file. `model`: what is said of the full model, such as its digest.
    `enrolled`: phones on the operator's register, None without one. `activity`: what the run's courier reports to.
    """

    folder: Path
    run: str
    config: Config
    weights_bytes: int
    simulated: bool
    model: dict[str, str] = field(default_factory=dict)
    enrolled: int | None = None
    activity: Activity = field(default_factory=Activity)
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.time()
        self._error: Exception | None = None
        self._record: RunRecord | None = None
        self._earlier = self._stored()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Write the snapshot now, every few seconds while the block lasts, and at its end with how it ended."""
        over = threading.Event()
        thread = threading.Thread(target=self._beat, args=(over,), name="heartbeat", daemon=True)
        status: Status = "stopped"
        self._error = None
        self._write("running")
        thread.start()
        try:
            yield
            status = "ended" if self._record is None or self._record.over else "waiting"
        except Exception as error:
            self._error, status = error, "postponed" if isinstance(error, PostponedError) else "failed"
            raise
        finally:
            over.set()
            thread.join()
            self._write(status)

    def running(self, record: RunRecord) -> None:
        """Take in a run so far, after each phase.

        A restarted run replays what it had finished: until it is past that, its figures stay those from before.
        """
        if self._earlier is None or len(record.phases) >= self._earlier.phases_finished:
            self._record = record
            self._write("running")

    def follow(self, flow: Flow, rounds: int = 0) -> RunRecord:
        """Run `flow` to its end or for so many `rounds`; what it counted is taken in, also where it fails."""
        try:
            return flow.run(rounds)
        finally:
            self.running(flow.record)

    def _beat(self, over: threading.Event) -> None:
        while not over.wait(self.seconds):
            self._write("running")

    def _write(self, status: Status) -> None:
        """Write the snapshot of this moment. Nothing that goes wrong here may reach the run."""
        try:
            with self._lock:
                snapshot.write(self.folder / snapshot.FILE, self.snapshot(status))
        except Exception:
            logger.warning("the snapshot cannot be made; the run goes on without it", exc_info=True)

    def snapshot(self, status: Status) -> Snapshot:
        """Make the snapshot of this moment."""
        now, moment = time.time(), self.activity.now
        known: dict[str, Any] = {"epsilon": 0.0 if self._constant["noise"] else None}
        if self._record is not None:
            known = figures_of(self._record, self.weights_bytes)
        elif self._earlier is not None:
            known = {name: getattr(self._earlier, name) for name in Snapshot.model_fields}
        done: int = known.get("round", 0)
        return Snapshot(
            **{
                **known,
                **self._constant,
                "status": status,
                "started": self._began if self._earlier is None else self._earlier.started,
                "heartbeat": now,
                "ended": None if status in ("running", "waiting", "postponed") else now,
                "postponed": self._error.reason if isinstance(self._error, PostponedError) else None,
                "error": _said(self._error)[: snapshot.ERROR_LENGTH],
                "process": _process(self._began),
                "present": _present(moment) if status == "running" else None,
                "round": max(moment.round, done),
            }
        )

    @cached_property
    def _constant(self) -> dict[str, Any]:
        """Return what does not change in a run."""
        privacy, local = self.config.privacy, self.config.privacy.sums == "local"
        budget = privacy.epsilon if privacy.noise or local else None
        sums = None if local or budget is None else 1 / (2 * noise_multiplier(budget, privacy.delta, 1) ** 2)
        return {
            "run": self.run,
            "build": _build(),
            "model": self.model,
            "rounds_planned": self.config.run.rounds or None,
            "enrolled": self.enrolled,
            "noise": budget is not None,
            "epsilon_budget": budget,
            "rho_budget": sums,
            "delta": privacy.spent_delta,
            "simulated": self.simulated,
            "marks": tuple(self.config.marks(self.simulated)),
        }

    def _stored(self) -> Snapshot | None:
        """Return the snapshot that an earlier process of this run left."""
        path = self.folder / snapshot.FILE
        try:
            found = snapshot.read(path) if path.exists() else None
        except StateError as error:
            logger.warning("%s", error)
            return None
        return found if found is not None and found.run == self.run else None


def described(config: Config, base: BaseModel) -> dict[str, str]:
    """Describe the full model: its network, and the digests that tell its weights and its shape from others."""
    return {"network": config.model.name, "weights": base.weights_digest[:12], "groups": base.groups.digest[:12]}


def figures_of(record: RunRecord, weights_bytes: int) -> dict[str, Any]:
    """Return those fields of a snapshot that a run so far decides."""
    seconds: dict[int, float] = {}
    for phase in record.phases:
        seconds[phase.round] = seconds.get(phase.round, 0.0) + phase.seconds
    figures: dict[str, Any] = {
        "round": max(seconds, default=0),
        "finished": len(record.rounds),
        "round_seconds": RoundSeconds.of(seconds.get(done.round, 0.0) for done in record.rounds),
        "phases": _phases(record),
        "phases_finished": len(record.phases),
        "phones": record.phones,
        "needed": _needed(record),
        "messages": _messages(record),
        "refused": dict(record.refused),
        "sums": _sums(record),
        "lost": _lost(record),
        "excluded": record.excluded,
        "epsilon": record.epsilon,
        "epsilon_server": record.epsilon_server,
        "looks": _looks(record),
    }
    if record.rounds:
        last = record.last
        figures["fleet"] = _fleet(record, last, weights_bytes)
        figures["other_weights"] = len(last.delivered.other_weights)
        figures["clusters"], figures["tiers"] = _clusters(record, last), _tiers(record, last)
    return figures


def _said(error: Exception | None) -> str:
    """Return the text of an error that is written to be read; of another one, which may say anything, its kind."""
    return "" if error is None else str(error) if isinstance(error, FedcaptorError) else type(error).__name__


def _present(moment: Moment) -> Present:
    return Present(
        phase=moment.phase.rsplit("-", 1)[0],
        started=moment.started,
        deadline=moment.deadline,
        step=moment.step,
        asked=moment.asked,
        replied=moment.replied,
        online=moment.online,
    )


def _process(began: float) -> Process:
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if platform.system() == "Darwin" else 1024  # of ru_maxrss
    return Process(started=began, cpu_seconds=used.ru_utime + used.ru_stime, peak_bytes=used.ru_maxrss * unit)


def _build() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in ("fedcaptor", "flwr", "torch"):
        try:
            found["version" if library == "fedcaptor" else library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _needed(record: RunRecord) -> int:
    """Return the fewest replies that a sum is made of, as `SumBudget` has it; local answers are used from one on."""
    config = record.config
    if config.privacy.sums == "local":
        return 1
    phones = record.phones - (len(record.last.delivered.other_weights) if record.rounds else 0)
    cohort = min(phones, config.rounds.cohort or phones)
    return max(config.privacy.min_cohort, math.ceil((1 - config.privacy.dropout) * cohort))


def _phases(record: RunRecord) -> tuple[Phase, ...]:
    kinds = dict.fromkeys(phase.kind for phase in record.phases)
    grouped = {kind: [phase for phase in record.phases if phase.kind == kind] for kind in kinds}
    return tuple(
        Phase(
            phase=kind,
            count=len(of),
            seconds=sum(phase.seconds for phase in of),
            asked=sum(phase.asked for phase in of),
            answered=sum(phase.replies for phase in of),
        )
        for kind, of in grouped.items()
    )


def _messages(record: RunRecord) -> tuple[Messages, ...]:
    results: dict[tuple[str, str], Counter[str]] = {}
    traffic: Counter[tuple[str, str, str]] = Counter()
    for phase in record.phases:
        for key, count in phase.messages.items():
            step, _, result = key.partition("/")
            results.setdefault((phase.kind, step), Counter())[result] += count
        for key, size in phase.traffic.items():
            step, _, direction = key.partition("/")
            traffic[phase.kind, step, direction] += size
    return tuple(
        Messages(phase=kind, step=step, results=counts, down=traffic[kind, step, "down"], up=traffic[kind, step, "up"])
        for (kind, step), counts in results.items()
    )


def _sums(record: RunRecord) -> tuple[Spent, ...]:
    spent: dict[str, Spent] = {}
    for each in record.sums:
        kind = _kind(each["name"])
        before = spent.get(kind, Spent(sum=kind, count=0))
        rho = None if each.get("rho") is None else each["rho"] + (before.rho or 0.0)
        spent[kind] = Spent(sum=kind, count=before.count + 1, rho=rho, stddev=each.get("deviation"))
    return tuple(spent.values())


def _kind(name: str) -> str:
    """Return the kind of the sum that is called "round-kind-number"."""
    return name.split("-", 1)[1].rsplit("-", 1)[0]


def _lost(record: RunRecord) -> tuple[LostSums, ...]:
    """Count lost sums by kind: a phase's number in its round is left out, so that labels stay few."""
    counts: Counter[tuple[str, str]] = Counter()
    for (phase, reason), count in record.lost.items():
        counts[phase.rsplit("-", 1)[0], reason] += count
    return tuple(LostSums.model_validate({"sum": s, "reason": r, "count": n}) for (s, r), n in sorted(counts.items()))


def _deviation(record: RunRecord, round: int, kind: str) -> float:
    """Return the standard deviation of the noise in an entry of a round's last sum of a kind, 0 without noise.

    `deviation` is that of the whole cohort; each phone brings its share, so fewer replies carry less.
    """
    found = [each for each in record.sums if each["name"].startswith(f"{round}-{kind}-")]
    if not found or not (deviation := found[-1].get("deviation")):
        return 0.0
    phase = next(p for p in record.phases if f"{p.round}-{p.phase}" == found[-1]["name"])
    return float(deviation * np.sqrt(phase.replies / phase.asked)) if phase.asked else float(deviation)


def _fleet(record: RunRecord, last: RoundRecord, weights_bytes: int) -> Fleet:
    """Make the fleet's figures. Agreement with the full model stands for accuracy: phones have no labels."""
    download = last.delivered.bytes / weights_bytes
    if last.fleet is None:
        return Fleet(download_ratio=download)
    sums, deviation = last.fleet, _deviation(record, last.round, "outcome")
    quantum = next((e["quantum"] for e in reversed(record.sums) if _kind(e["name"]) == "outcome" and "quantum" in e), 0)

    def mean(**weights: float) -> Figure | None:
        found = fleet_ratio(sums, deviation, weights, quantum)
        return None if found is None else _figure(found)

    return Fleet(
        phones=_figure(fleet_phones(sums, deviation)),
        macs_ratio=mean(macs=1),
        parameters_ratio=mean(parameters=1),
        energy_ratio=mean(**energy_weights(record.groups)),
        agreement_ratio=mean(agreement=1),
        cluster_agreement_ratio=mean(agreement_cluster=1),
        fallback_ratio=mean(escalated=1),
        personalised_ratio=mean(personal=1),
        drifted_ratio=mean(drifted=1),
        download_ratio=download,
    )


def _figure(estimate: Estimate) -> Figure:
    return Figure(value=estimate.value, stddev=estimate.stddev)


def _clusters(record: RunRecord, last: RoundRecord) -> tuple[Cluster, ...]:
    """Describe clusters under names that they keep; those beyond `CLUSTERS` together, as `OTHER`."""
    macs, parameters = _ratios(record, last)
    shares = np.array(
        [tier.share for tier in record.config.tiers] or [1.0]
    )  # nobody hears which phone is of which tier
    names = cluster_names(done.centroids for done in record.rounds)
    stddev = _cluster_stddev(record, last)
    clusters = [
        Cluster(
            cluster=str(name) if name < CLUSTERS else OTHER,
            phones=Figure(value=float(last.counts[k]), stddev=stddev),
            macs_ratio=float(macs[k] @ shares),
            parameters_ratio=float(parameters[k] @ shares),
        )
        for k, name in enumerate(names)
    ]
    named = [cluster for cluster in clusters if cluster.cluster != OTHER]
    rest = [cluster for cluster in clusters if cluster.cluster == OTHER]
    if rest:
        phones = Figure(value=sum(one.phones.value for one in rest), stddev=stddev * np.sqrt(len(rest)))
        named.append(Cluster(cluster=OTHER, phones=phones))
    return tuple(named)


def _cluster_stddev(record: RunRecord, last: RoundRecord) -> float:
    """Bound the standard deviation of a cluster's phones: a block's entries are added up, and merged blocks too.

    A published cluster is made of at most all blocks that were merged in the round and its own. With local answers
    phones are counted by fitting, and flipped bits give the order of the error alone.
    """
    classes, sums = last.centroids.shape[1], [e for e in record.sums if _kind(e["name"]) == "usage"]
    if record.config.privacy.sums == "local":
        return float(sums[-1]["deviation"]) if sums else 0.0
    of_round = [each for each in sums if each["name"].startswith(f"{last.round}-")]
    blocks = of_round[-1]["length"] // classes if of_round else len(last.centroids)
    merged = max(blocks - len(last.centroids), 0)
    return _deviation(record, last.round, "usage") * float(np.sqrt(classes * (1 + merged)))


def _looks(record: RunRecord) -> tuple[Look, ...]:
    """Describe the looks of phones' photos; their phones' error is bounded as that of clusters is."""
    if not record.looks:
        return ()
    sums = [each for each in record.sums if _kind(each["name"]) == LOOK.kind]
    blocks = sums[-1]["length"] // LOOK.length(record.groups, 1) if sums else 0
    stddev = _deviation(record, 1, LOOK.kind) / COUNTED * math.sqrt(1 + max(blocks - len(record.looks), 0))
    return tuple(
        Look(
            look=number,
            phones=Figure(value=one.phones, stddev=stddev),
            shipped=one.shipped,
            adapted=one.adapted,
            moved=one.moved,
        )
        for number, one in enumerate(record.looks)
    )


def _tiers(record: RunRecord, last: RoundRecord) -> tuple[Tier, ...]:
    macs, parameters = _ratios(record, last)
    counts = np.maximum(last.counts, 0.0)
    weights = counts / counts.sum() if counts.sum() > 0 else np.full(len(counts), 1 / len(counts))
    names = [tier.name for tier in record.config.tiers] or ["default"]
    full = 4.0 * record.groups.parameters()  # single precision
    return tuple(
        Tier(
            tier=name,
            macs_ratio=float(weights @ macs[:, t]),
            parameters_ratio=float(weights @ parameters[:, t]),
            bytes=full * float(weights @ parameters[:, t]),
        )
        for t, name in enumerate(names)
    )


def _ratios(record: RunRecord, last: RoundRecord) -> tuple[np.ndarray, np.ndarray]:
    """Return MACs and parameters of the delivered submodels as ratios of the full model's, each [clusters, tiers], the
    mean over looks.
    """
    counts = [plan.counts() for plan in last.submodels.plans]
    shape = -1, len(last.centroids), len(record.config.tiers) or 1
    macs = np.reshape([record.groups.macs_ratio(kept) for kept in counts], shape)
    return macs.mean(0), np.reshape([record.groups.parameters_ratio(kept) for kept in counts], shape).mean(0)
