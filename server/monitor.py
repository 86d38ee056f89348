"""Write the snapshot that operators watch: it holds private sums and what the server knows anyway."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fedcaptor.common.statistics import outcome_means
from fedcaptor.server import snapshot
from fedcaptor.server.flow import Flow
from fedcaptor.server.record import RunRecord
from fedcaptor.server.snapshot import Cluster, Fleet, LostSums, Rounds, RoundSeconds, Snapshot

Status = Literal["running", "ended", "failed"]


@dataclass(frozen=True)
class Monitor:
    """Keep the snapshot in `folder` up to date with a run. `weights_bytes`: size of the full model's file."""

    folder: Path
    run: str
    weights_bytes: int
    simulated: bool

    def running(self, record: RunRecord) -> None:
        """Write the snapshot of a run in progress, after each phase."""
        self._write(record, "running")

    def follow(self, flow: Flow) -> RunRecord:
        """Run `flow` to its end, and say how it ended."""
        status: Status = "failed"
        try:
            record = flow.run()
            status = "ended"
        finally:
            self._write(flow.record, status)
        return record

    def _write(self, record: RunRecord, status: Status) -> None:
        now = snapshot_of(record, self.run, self.weights_bytes, status, self.simulated)
        snapshot.write(self.folder / snapshot.FILE, now)


def snapshot_of(record: RunRecord, run: str, weights_bytes: int, status: Status, simulated: bool) -> Snapshot:
    """Make the snapshot of a run now. Agreement with the full model stands for accuracy: the fleet has no labels."""
    seconds: dict[int, float] = {}
    for phase in record.phases:
        seconds[phase.round] = seconds.get(phase.round, 0.0) + phase.seconds
    return Snapshot(
        run=run,
        status=status,
        updated=time.time(),
        round=record.last.round if record.rounds else 0,
        phones=record.phones,
        fleet=_fleet(record, weights_bytes),
        clusters=tuple(_clusters(record, weights_bytes)),
        rounds=Rounds(finished=len(record.rounds), failed=int(status == "failed")),
        round_seconds=RoundSeconds.of(seconds[done.round] for done in record.rounds),
        replies={
            "ok": sum(phase.replies for phase in record.phases),
            "dropped": sum(phase.dropped for phase in record.phases),
            "refused": sum(record.refused.values()),
        },
        refused=dict(record.refused),
        lost=tuple(_lost(record)),
        excluded=record.excluded,
        epsilon=record.epsilon,
        epsilon_server=record.epsilon_server,
        delta=record.config.privacy.spent_delta,
        simulated=simulated,
        marks=tuple(record.config.marks(simulated)),
    )


def _lost(record: RunRecord) -> list[LostSums]:
    """Count lost sums by kind: a phase's number in its round is left out, so that labels stay few."""
    counts: Counter[tuple[str, str]] = Counter()
    for (phase, reason), count in record.lost.items():
        counts[phase.rsplit("-", 1)[0], reason] += count
    return [LostSums.model_validate({"sum": s, "reason": r, "count": n}) for (s, r), n in sorted(counts.items())]


def _fleet(record: RunRecord, weights_bytes: int) -> Fleet:
    if not record.rounds:
        return Fleet()
    last = record.last
    means = outcome_means(last.fleet)
    download = last.delivered.bytes / weights_bytes
    if means is None:
        return Fleet(download_ratio=download)
    return Fleet(
        macs_ratio=means["macs"],
        parameters_ratio=means["parameters"],
        download_ratio=download,
        accuracy_before=means["agreement_cluster"],
        accuracy_after=means["agreement"],
        fallback_ratio=means["escalated"],
    )


def _clusters(record: RunRecord, weights_bytes: int) -> list[Cluster]:
    if not record.rounds:
        return []
    last, groups = record.last, record.groups
    shares = [tier.share for tier in record.config.tiers] or [1.0]  # nobody hears which phone is of which tier
    counts = [plan.counts() for plan in last.submodels.plans]
    macs = np.reshape([groups.macs_ratio(c) for c in counts], (-1, len(shares))) @ shares
    parameters = np.reshape([groups.parameters_ratio(c) for c in counts], (-1, len(shares))) @ shares
    return [
        Cluster(
            cluster=str(k),
            phones=float(last.counts[k]),
            macs_ratio=float(macs[k]),
            parameters_ratio=float(parameters[k]),
            download_ratio=last.delivered.bytes / weights_bytes,
        )
        for k in range(len(last.centroids))
    ]
