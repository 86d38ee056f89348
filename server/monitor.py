"""From a run's state to the snapshot that operators watch: private sums and what the server knows anyway."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedcaptor.common import statistics
from fedcaptor.server import snapshot
from fedcaptor.server.flow import Flow
from fedcaptor.server.snapshot import Cluster, Fleet, LostSums, Rounds, RoundSeconds, Snapshot

Status = Literal["running", "ended", "failed"]


@dataclass(frozen=True)
class Monitor:
    """Keeps the snapshot in `folder` true to a run. `weights_bytes`: size of the full model's file."""

    folder: Path
    run: str
    weights_bytes: int
    simulated: bool

    def running(self, flow: Flow) -> None:
        """After each phase."""
        self._write(flow, "running")

    def follow(self, flow: Flow) -> None:
        """Run `flow` to its end, and say how it ended."""
        status: Status = "failed"
        try:
            flow.run()
            status = "ended"
        finally:
            self._write(flow, status)

    def _write(self, flow: Flow, status: Status) -> None:
        now = snapshot_of(flow, self.run, self.weights_bytes, status, self.simulated)
        snapshot.write(self.folder / snapshot.FILE, now)


def snapshot_of(flow: Flow, run: str, weights_bytes: int, status: Status, simulated: bool) -> Snapshot:
    """The state of `flow` now. Agreement with the full model stands for accuracy: the fleet has no labels."""
    published = flow.published[-1] if flow.published else None
    seconds: dict[int, float] = {}
    for (round, _), spent in flow.journal.seconds().items():
        seconds[round] = seconds.get(round, 0.0) + spent
    finished = [seconds[p.round] for p in flow.published if p.round in seconds]
    replies = {name: sum(int(p[name]) for p in flow.phases) for name in ("replies", "dropped")}
    refused = flow.journal.refused()
    return Snapshot(
        run=run,
        status=status,
        updated=time.time(),
        round=published.round if published else 0,
        phones=len(flow.nodes),
        fleet=_fleet(flow, weights_bytes),
        clusters=tuple(_clusters(flow, weights_bytes)),
        rounds=Rounds(finished=len(flow.published), failed=int(status == "failed")),
        round_seconds=RoundSeconds.of(finished),
        replies={"ok": replies["replies"], "dropped": replies["dropped"], "refused": sum(refused.values())},
        refused=refused,
        lost=tuple(_lost(flow)),
        epsilon=flow.epsilon,
        epsilon_server=flow.epsilon_server,
        delta=flow.config.privacy.spent_delta,
        simulated=simulated,
        marks=tuple(flow.config.marks(simulated)),
    )


def _lost(flow: Flow) -> list[LostSums]:
    """By kind of sum: a phase's number in its round is left out, so that labels stay few."""
    counts: Counter[tuple[str, str]] = Counter()
    for (phase, reason), count in flow.journal.lost().items():
        counts[phase.rsplit("-", 1)[0], reason] += count
    return [LostSums.model_validate({"sum": s, "reason": r, "count": n}) for (s, r), n in sorted(counts.items())]


def outcome_means(fleet: Any) -> dict[str, float] | None:
    """Mean of each outcome over the phones of noisy sums [K, len(OUTCOME)], within [0, 1]; None when no phone is left
    of them, or without sums.
    """
    if fleet is None:
        return None
    sums = dict(zip(statistics.OUTCOME, fleet.sum(0), strict=True))
    if sums["phones"] < 1:
        return None
    return {name: float(np.clip(value / sums["phones"], 0, 1)) for name, value in sums.items()}


def _fleet(flow: Flow, weights_bytes: int) -> Fleet:
    if not flow.published:
        return Fleet()
    last = flow.published[-1]
    means = outcome_means(last.fleet)
    download = last.delivered_bytes / weights_bytes
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


def _clusters(flow: Flow, weights_bytes: int) -> list[Cluster]:
    if not flow.published:
        return []
    last, groups = flow.published[-1], flow.base.groups
    shares = [tier.share for tier in flow.config.tiers] or [1.0]  # nobody hears which phone is of which tier
    counts = [plan.counts() for plan in last.catalogue.plans]
    macs = np.reshape([groups.macs_ratio(c) for c in counts], (-1, len(shares))) @ shares
    parameters = np.reshape([groups.parameters_ratio(c) for c in counts], (-1, len(shares))) @ shares
    return [
        Cluster(
            cluster=str(k),
            phones=float(last.counts[k]),
            macs_ratio=float(macs[k]),
            parameters_ratio=float(parameters[k]),
            download_ratio=last.delivered_bytes / weights_bytes,
        )
        for k in range(len(last.centroids))
    ]
