"""Prometheus exporter: reads `DIR/snapshot.json` at each scrape, so it may run beside the server, before or after it.

The figures are totals, ratios and private estimates; no label names a phone. The run's digest is in an info metric
alone, so that a new run does not start new series.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Self, get_args
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from common.config import SMALL_COHORTS
from common.errors import ConfigError, StateError
from common.messages import REASONS, Kind
from server.journal import LOST
from server.snapshot import FILE, OTHER, Snapshot, read

PORT = 9464
STATUSES = ("running", "ended", "failed")
REPLIES = ("ok", "dropped", "refused")

logger = logging.getLogger(__name__)


class SnapshotCollector(Collector):
    """Metrics of the snapshot in `directory`. A missing or damaged one leaves `fedcaptor_snapshot_readable` 0 alone.

    So does one of small cohorts where other machines read it (`public`).
    """

    def __init__(self, directory: Path, public: bool = False) -> None:
        self._path, self._public = directory / FILE, public
        self._problem: str | None = None

    def collect(self) -> Iterable[Metric]:
        """The metrics of this moment."""
        snapshot: Snapshot | None = None
        problem: str | None = None
        try:
            snapshot = read(self._path)
            if self._public and SMALL_COHORTS in snapshot.marks:
                snapshot = None
                problem = "a run of small cohorts is not served to other machines: bind the exporter to 127.0.0.1"
        except StateError as error:
            problem = str(error)
        if problem is not None and problem != self._problem:
            logger.warning("%s", problem)
        self._problem = problem
        yield _gauge("snapshot_readable", "1 when the run's snapshot could be read, else 0.", snapshot is not None)
        if snapshot is not None:
            yield from _metrics(snapshot, time.time())


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"fedcaptor_{name}", text, value=float(value))


def _gauges(name: str, text: str, label: str, values: Mapping[str, float | None]) -> Metric:
    """One series for each known value."""
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
    """`values` with every unknown key counted as `other`: labels stay bounded. All known keys are present."""
    counts = Counter(dict.fromkeys(known, 0))
    for key, value in values.items():
        counts[key if key in counts else OTHER] += value
    return dict(counts)


def _metrics(snapshot: Snapshot, now: float) -> Iterable[Metric]:
    yield _gauge("snapshot_age_seconds", "Time since the run wrote its snapshot.", max(0.0, now - snapshot.updated))
    yield InfoMetricFamily("fedcaptor_run", "Digest of the run's configuration.", value={"run": snapshot.run})
    statuses = {status: float(status == snapshot.status) for status in STATUSES}
    yield _gauges("run_status", "1 for the status that the run has, 0 for the others.", "status", statuses)
    yield _gauge("simulated", "1 when the phones are simulated, else 0.", snapshot.simulated)
    marks = dict.fromkeys(snapshot.marks, 1.0)
    yield _gauges("mark", "1 for each reservation about this run, such as sums not encrypted.", "mark", marks)
    yield _gauge("round", "Round in progress, or the last one.", snapshot.round)
    yield _gauge("phones", "Phones in the fleet.", snapshot.phones)

    fleet = snapshot.fleet
    ratios = (
        ("macs_ratio", "MACs of the phones' models as a ratio of the full model.", fleet.macs_ratio),
        ("parameters_ratio", "Parameters of the phones' models as a ratio of the full model.", fleet.parameters_ratio),
        ("download_ratio", "Bytes that the phones download as a ratio of the full model.", fleet.download_ratio),
        (
            "fallback_ratio",
            "Ratio of the owners' images that submodels hand on to a larger model.",
            fleet.fallback_ratio,
        ),
    )
    for name, text, value in ratios:
        if value is not None:
            yield _gauge(f"fleet_{name}", text, value)
    accuracy = {"before": fleet.accuracy_before, "after": fleet.accuracy_after}
    yield _gauges(
        "fleet_accuracy_ratio",
        "Agreement with the full model on the owners' classes, by stage of pruning; phones have no labels.",
        "stage",
        accuracy,
    )

    by_cluster = {
        "phones": "Private estimate of the cluster's phones.",
        "macs_ratio": "MACs of the cluster's model as a ratio of the full model.",
        "parameters_ratio": "Parameters of the cluster's model as a ratio of the full model.",
        "download_ratio": "Bytes that a phone of the cluster downloads as a ratio of the full model.",
    }
    for name, text in by_cluster.items():
        values = {cluster.cluster: getattr(cluster, name) for cluster in snapshot.clusters}
        yield _gauges(f"cluster_{name}", text, "cluster", values)

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
    for labels in product(get_args(Kind), LOST):
        lost.add_metric(labels, counts.get(labels, 0))
    yield lost

    epsilon = math.inf if snapshot.epsilon is None else snapshot.epsilon
    yield _gauge("privacy_epsilon", "Epsilon spent so far, +Inf when noise is off.", epsilon)
    cheated = math.inf if snapshot.epsilon_server is None else snapshot.epsilon_server
    yield _gauge("privacy_server_epsilon", "The same towards a server that deviates from the protocol.", cheated)
    yield _gauge("privacy_delta", "Delta of the privacy guarantee.", snapshot.delta)
    yield _gauge(
        "privacy_noise_enabled", "1 when the sums carry noise, 0 when noise is off.", snapshot.epsilon is not None
    )


@dataclass
class Exporter:
    """A running exporter; leaving its `with` block, or `close`, stops it."""

    host: str
    port: int
    _server: WSGIServer
    _thread: threading.Thread

    @property
    def url(self) -> str:
        """Where to scrape."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def wait(self) -> None:
        """Block until `close` or an interruption."""
        self._thread.join()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(directory: Path, host: str = "127.0.0.1", port: int = PORT) -> Exporter:
    """Serve the snapshot in `directory` from a thread. `port` 0 takes a free one. There is no authentication: another
    host than loopback must be asked for and is logged. Raises ConfigError when the address cannot be used.
    """
    if not host.strip():
        raise ConfigError("the exporter's host is empty, must be an address: give 127.0.0.1, or 0.0.0.0 to serve all")
    if not 0 <= port <= 65535:
        raise ConfigError(f"the exporter's port is {port}, must lie in 0..65535: give another one")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(directory, public=not _is_loopback(host)))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ConfigError(
            f"the exporter cannot listen on {host} port {port} ({error.strerror or error}): "
            "stop what uses it or give another port or host"
        ) from error
    if not _is_loopback(host):
        logger.warning("the exporter serves %s without authentication: let the monitoring network alone reach it", host)
    return Exporter(host, int(server.server_address[1]), server, thread)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
