"""Turn a run's snapshot into Prometheus metrics.

The figures are totals, ratios and private estimates; no label names a phone. The run's digest is in an info metric
alone, so that a new run does not start new series.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import product

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from fedcaptor.common.messages import REASONS
from fedcaptor.common.statistics import kinds
from fedcaptor.server.journal import LOST
from fedcaptor.server.snapshot import OTHER, Snapshot

STATUSES = ("running", "waiting", "ended", "failed")
REPLIES = ("ok", "dropped", "refused")

FLEET = {
    "macs_ratio": "MACs of the phones' models as a ratio of the full model.",
    "parameters_ratio": "Parameters of the phones' models as a ratio of the full model.",
    "download_ratio": "Bytes that the phones download as a ratio of the full model.",
    "fallback_ratio": "Ratio of the owners' images that submodels hand on to a larger model.",
}
CLUSTER = {
    "phones": "Private estimate of the cluster's phones.",
    "macs_ratio": "MACs of the cluster's model as a ratio of the full model.",
    "parameters_ratio": "Parameters of the cluster's model as a ratio of the full model.",
    "download_ratio": "Bytes that a phone of the cluster downloads as a ratio of the full model.",
}
"""Figures of a snapshot by name, with what they mean."""


def readable(snapshot: Snapshot | None) -> Metric:
    """Make the metric that tells whether there is a snapshot: the one that is always there."""
    return _gauge("snapshot_readable", "1 when the run's snapshot could be read, else 0.", snapshot is not None)


def metrics_of(snapshot: Snapshot, now: float) -> Iterable[Metric]:
    """Yield all metrics of a run; `now` is in seconds since the epoch."""
    yield _gauge("snapshot_age_seconds", "Time since the run wrote its snapshot.", max(0.0, now - snapshot.updated))
    yield InfoMetricFamily("fedcaptor_run", "Digest of the run's configuration.", value={"run": snapshot.run})
    yield from _state(snapshot)
    yield from _models(snapshot)
    yield from _rounds(snapshot)
    yield from _privacy(snapshot)


def _state(snapshot: Snapshot) -> Iterable[Metric]:
    statuses = {status: float(status == snapshot.status) for status in STATUSES}
    yield _gauges("run_status", "1 for the status that the run has, 0 for the others.", "status", statuses)
    yield _gauge("simulated", "1 when the phones are simulated, else 0.", snapshot.simulated)
    marks = dict.fromkeys(snapshot.marks, 1.0)
    yield _gauges("mark", "1 for each reservation about this run, such as sums not encrypted.", "mark", marks)
    yield _gauge("round", "Round in progress, or the last one.", snapshot.round)
    yield _gauge("phones", "Phones in the fleet.", snapshot.phones)


def _models(snapshot: Snapshot) -> Iterable[Metric]:
    """Yield metrics of the fleet and of each cluster; what is not known yet is left out."""
    fleet = snapshot.fleet
    for name, text in FLEET.items():
        if (value := getattr(fleet, name)) is not None:
            yield _gauge(f"fleet_{name}", text, value)
    yield _gauges(
        "fleet_accuracy_ratio",
        "Agreement with the full model on the owners' classes, by stage of pruning; phones have no labels.",
        "stage",
        {"before": fleet.accuracy_before, "after": fleet.accuracy_after},
    )
    for name, text in CLUSTER.items():
        values = {cluster.cluster: getattr(cluster, name) for cluster in snapshot.clusters}
        yield _gauges(f"cluster_{name}", text, "cluster", values)


def _rounds(snapshot: Snapshot) -> Iterable[Metric]:
    """Yield metrics of rounds, and of what phones answered in them."""
    rounds = {"finished": snapshot.rounds.finished, "failed": snapshot.rounds.failed}
    yield _counters("rounds", "Rounds by result.", "result", rounds)
    yield HistogramMetricFamily(
        "fedcaptor_round_duration_seconds",
        "Duration of rounds.",
        buckets=[(floatToGoString(bound), count) for bound, count in snapshot.round_seconds.cumulative],
        sum_value=snapshot.round_seconds.sum,
    )
    replies = _folded(snapshot.replies, REPLIES)
    yield _counters("replies", "Requests to phones by what became of them.", "result", replies)
    yield _counters("refused_replies", "Refused replies by reason.", "reason", _folded(snapshot.refused, REASONS))
    lost = CounterMetricFamily(
        "fedcaptor_lost_sums", "Sums that came to nothing, by kind and reason.", labels=["sum", "reason"]
    )
    counts: dict[tuple[str, str], int] = {(part.sum, part.reason): part.count for part in snapshot.lost}
    for labels in product(kinds(), LOST):
        lost.add_metric(labels, counts.get(labels, 0))
    yield lost
    yield _gauge("excluded_phones", "Phones that a sum was lost by, and which are asked for none.", snapshot.excluded)


def _privacy(snapshot: Snapshot) -> Iterable[Metric]:
    noisy = snapshot.epsilon is not None
    epsilon = math.inf if snapshot.epsilon is None else snapshot.epsilon
    yield _gauge("privacy_epsilon", "Epsilon spent so far, +Inf when noise is off.", epsilon)
    cheated = math.inf if snapshot.epsilon_server is None else snapshot.epsilon_server
    yield _gauge("privacy_server_epsilon", "The same towards a server that deviates from the protocol.", cheated)
    yield _gauge("privacy_delta", "Delta of the privacy guarantee.", snapshot.delta)
    yield _gauge("privacy_noise_enabled", "1 when the sums carry noise, 0 when noise is off.", noisy)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"fedcaptor_{name}", text, value=float(value))


def _gauges(name: str, text: str, label: str, values: Mapping[str, float | None]) -> Metric:
    """Make one series for each known value."""
    family = GaugeMetricFamily(f"fedcaptor_{name}", text, labels=[label])
    for key, value in values.items():
        if value is not None:
            family.add_metric([key], value)
    return family


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"fedcaptor_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _folded(values: Mapping[str, int], known: Iterable[str]) -> dict[str, int]:
    """Count every unknown key of `values` as `other`, so that labels stay bounded. All known keys are present."""
    counts = Counter(dict.fromkeys(known, 0))
    for key, value in values.items():
        counts[key if key in counts else OTHER] += value
    return dict(counts)
