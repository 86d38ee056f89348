"""From a run's state to the snapshot that operators watch: private sums and what the server knows anyway."""

from __future__ import annotations

import time
from typing import Any, Literal

import numpy as np

from common import statistics
from server.flow import Flow
from server.journal import Journal
from server.snapshot import Cluster, Fleet, Rounds, RoundSeconds, Snapshot

Status = Literal["running", "ended", "failed"]


def snapshot_of(flow: Flow, journal: Journal, run: str, phones: int, weights_bytes: int, status: str) -> Snapshot:
    """The state of `flow` now. Agreement with the full model stands for accuracy: the fleet has no labels."""
    published = flow.published[-1] if flow.published else None
    seconds: dict[int, float] = {}
    for (round, _), spent in journal.seconds().items():
        seconds[round] = seconds.get(round, 0.0) + spent
    finished = [seconds[p.round] for p in flow.published if p.round in seconds]
    replies = {name: sum(int(p[name]) for p in flow.phases) for name in ("replies", "dropped")}
    refused = journal.refused()
    return Snapshot(
        run=run,
        status=_status(status),
        updated=time.time(),
        round=published.round if published else 0,
        phones=phones,
        fleet=_fleet(flow, weights_bytes),
        clusters=tuple(_clusters(flow, weights_bytes)),
        rounds=Rounds(finished=len(flow.published), failed=int(status == "failed")),
        round_seconds=RoundSeconds.of(finished),
        replies={"ok": replies["replies"], "dropped": replies["dropped"], "refused": sum(refused.values())},
        refused=refused,
        epsilon=flow.epsilon,
        delta=flow.config.privacy.delta,
        simulated=True,
        marks=tuple(flow.config.marks),
    )


def _status(text: str) -> Status:
    return "ended" if text == "ended" else "failed" if text == "failed" else "running"


def _means(total: Any) -> dict[str, float] | None:
    """Mean of each outcome over the phones of a noisy sum, within [0, 1]; None when no phone is left of it."""
    sums = dict(zip(statistics.OUTCOME, total, strict=True))
    if sums["phones"] < 1:
        return None
    return {name: float(np.clip(value / sums["phones"], 0, 1)) for name, value in sums.items()}


def _fleet(flow: Flow, weights_bytes: int) -> Fleet:
    if not flow.published:
        return Fleet()
    last = flow.published[-1]
    means = _means(last.fleet.sum(0))
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
    return [
        Cluster(
            cluster=str(k),
            phones=float(last.counts[k]),
            macs_ratio=groups.macs(plan.counts()) / groups.macs(),
            parameters_ratio=groups.parameters(plan.counts()) / groups.parameters(),
            download_ratio=last.delivered_bytes / weights_bytes,
        )
        for k, plan in enumerate(last.plans)
    ]
