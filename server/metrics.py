"""Turn the snapshots of runs into Prometheus metrics.

The figures are totals, ratios and private estimates, these with their standard deviation; no label names a phone. All
labels have few values: names of runs (`RUNS` at most), phases, steps, results, clusters, tiers and sums. A run's digest
and the versions are in info metrics alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.utils import floatToGoString

from fedcaptor.common.energy import MODEL
from fedcaptor.common.messages import REASONS
from fedcaptor.common.privacy.zcdp import PERIOD_DAYS
from fedcaptor.common.statistics import kinds
from fedcaptor.server.collect import MASKED_STEPS, RESULTS
from fedcaptor.server.journal import LOST
from fedcaptor.server.snapshot import OTHER, POSTPONED, STATUSES, Figure, Snapshot

RUNS = 16
"""Runs that are exported at most, those that were at work last."""
SILENT_SECONDS = 60.0
"""Seconds without a heartbeat after which a run that did not end counts as lost: a dozen were missed."""
LOST_STATUS = "lost"

_STEPS = (*MASKED_STEPS, "sum", "local", "deliver")

Samples = Iterable[tuple[tuple[str, ...], float | None]]
"""Values by label values, without the run's; None is left out."""


@dataclass(frozen=True)
class Family:
    """Describe one metric: what it is called, says, and has of a snapshot at a time in unix seconds."""

    name: str
    text: str
    samples: Callable[[Snapshot], Samples]
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"

    def of(self, runs: Mapping[str, Snapshot]) -> Metric:
        """Make the metric of all runs."""
        made = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        family = made(f"fedcaptor_{self.name}", self.text, labels=["run", *self.labels])
        for run, snapshot in runs.items():
            for labels, value in self.samples(snapshot):
                if value is not None:
                    family.add_metric([run, *labels], float(value))
        return family


def one(value: Callable[[Snapshot], float | None]) -> Callable[[Snapshot], Samples]:
    """Make the samples of a metric without labels."""
    return lambda snapshot: [((), value(snapshot))]


def status_of(snapshot: Snapshot, now: float) -> str:
    """Tell how a run is: `LOST_STATUS` where it did not end and its heartbeat stopped, as after a kill."""
    silent = snapshot.status == "running" and now - snapshot.heartbeat > SILENT_SECONDS
    return LOST_STATUS if silent else snapshot.status


def _statuses(snapshot: Snapshot) -> Samples:
    now = status_of(snapshot, time.time())
    return [((status,), status == now) for status in (*STATUSES, LOST_STATUS)]


def _reasons(snapshot: Snapshot) -> Samples:
    return [((reason,), reason == snapshot.postponed) for reason in POSTPONED]


def _phases(snapshot: Snapshot) -> Samples:
    present = snapshot.present.phase if snapshot.present else None
    names = dict.fromkeys(phase.phase for phase in snapshot.phases)
    if present:
        names[present] = None
    return [((name,), name == present) for name in names]


def _messages(snapshot: Snapshot) -> Samples:
    counts: Counter[tuple[str, ...]] = Counter()
    for part in snapshot.messages:
        step = _step(part.step)
        counts.update({(part.phase, step, result): 0 for result in RESULTS})
        for result, count in part.results.items():
            counts[part.phase, step, result if result in RESULTS else OTHER] += count
    return counts.items()


def _traffic(snapshot: Snapshot) -> Samples:
    counts: Counter[tuple[str, ...]] = Counter()
    for part in snapshot.messages:
        counts[part.phase, _step(part.step), "down"] += part.down
        counts[part.phase, _step(part.step), "up"] += part.up
    return counts.items()


def _step(name: str) -> str:
    return name if name in _STEPS else OTHER


def _refused(snapshot: Snapshot) -> Samples:
    counts = Counter(dict.fromkeys(REASONS, 0))
    for reason, count in snapshot.refused.items():
        counts[reason if reason in REASONS else OTHER] += count
    return [((reason,), count) for reason, count in counts.items()]


def _accuracies(snapshot: Snapshot) -> Samples:
    for each in snapshot.looks:
        yield (str(each.look), "shipped"), each.shipped
        yield (str(each.look), "adapted"), each.adapted


def _lost_sums(snapshot: Snapshot) -> Samples:
    counts: dict[tuple[str, ...], int] = {(sum, reason): 0 for sum in kinds() for reason in LOST}
    counts |= {(part.sum, part.reason): part.count for part in snapshot.lost}
    return counts.items()


def _present(name: str) -> Callable[[Snapshot], Samples]:
    return one(lambda snapshot: getattr(snapshot.present, name) if snapshot.present else None)


def _process(name: str) -> Callable[[Snapshot], Samples]:
    return one(lambda snapshot: getattr(snapshot.process, name) if snapshot.process else None)


def _value(figure: Figure | float | None) -> float | None:
    return figure.value if isinstance(figure, Figure) else figure


def _stddev(figure: Figure | None) -> float | None:
    return figure.stddev if figure else None


FLEET = {
    "phones": "Private estimate of the phones that reported an outcome.",
    "macs_ratio": "MACs of the phones' models as a ratio of the full model: private estimate.",
    "parameters_ratio": "Parameters of the phones' models as a ratio of the full model: private estimate.",
    "energy_ratio": f"Modelled energy of answers as a ratio of the full model ({MODEL}): private estimate.",
    "agreement_ratio": "Agreement of the phones' own models with the full model, on own images: private estimate.",
    "cluster_agreement_ratio": "Agreement of the clusters' models with the full model: private estimate.",
    "fallback_ratio": "Ratio of the owners' images that submodels hand on to a larger model: private estimate.",
    "personalised_ratio": "Ratio of phones whose submodel is their own: private estimate.",
    "drifted_ratio": "Ratio of phones whose habits had drifted when they took up the delivery: private estimate.",
}
"""Private estimates of a snapshot's `fleet` by name, with what they mean."""

_estimates = [
    family
    for name, text in FLEET.items()
    for family in (
        Family(f"fleet_{name}", text, one(lambda s, name=name: _value(getattr(s.fleet, name)))),  # type: ignore[misc]
        Family(
            f"fleet_{name}_stddev",
            f"Standard deviation of fedcaptor_fleet_{name} by the noise of its sums.",
            one(lambda s, name=name: _stddev(getattr(s.fleet, name))),  # type: ignore[misc]
        ),
    )
]

FAMILIES = (
    Family("run_status", "1 for the status that the run has, 0 for the others.", _statuses, ("status",)),
    Family("run_postponed", "1 for the reason for which the run cannot go on yet, else 0.", _reasons, ("reason",)),
    Family("run_start_timestamp_seconds", "When the run began.", one(lambda s: s.started)),
    Family("run_heartbeat_timestamp_seconds", "When the run was last seen at work.", one(lambda s: s.heartbeat)),
    Family("run_end_timestamp_seconds", "When the run was over; absent until then.", one(lambda s: s.ended)),
    Family("simulated", "1 when the phones are simulated, else 0.", one(lambda s: s.simulated)),
    Family("mark", "1 for each reservation about this run, such as sums not encrypted.",
           lambda s: [((mark,), 1.0) for mark in s.marks], ("mark",)),
    Family("round", "Round in progress, or the last one.", one(lambda s: s.round)),
    Family("rounds_planned", "Rounds of the run; absent where it has no end.", one(lambda s: s.rounds_planned)),
    Family("rounds_finished", "Rounds that ended well.", one(lambda s: s.finished), kind="counter"),
    Family("phase", "1 for the phase in progress, 0 for others that the run had.", _phases, ("phase",)),
    Family("phase_start_timestamp_seconds", "When the phase in progress began.", _present("started")),
    Family("phase_deadline_timestamp_seconds", "When the server stops to wait for phones.", _present("deadline")),
    Family("phase_asked_phones", "Phones asked in the step in progress.", _present("asked")),
    Family("phase_replied_phones", "Phones that answered the step in progress.", _present("replied")),
    Family("phones", "Phones of the run.", one(lambda s: s.phones)),
    Family("phones_online", "Phones that the SuperLink knew when the sum in progress began.", _present("online")),
    Family("phones_enrolled", "Phones on the operator's register.", one(lambda s: s.enrolled)),
    Family("phones_needed", "Replies without which a sum comes to nothing.", one(lambda s: s.needed)),
    Family("phones_excluded", "Phones that a sum was lost by, and which are asked for none.",
           one(lambda s: s.excluded)),
    Family("phones_other_weights", "Phones that refused the last delivery, as their base model has other weights.",
           one(lambda s: s.other_weights)),
    Family("asked_phones", "Phones asked, once a phase.",
           lambda s: [((p.phase,), p.asked) for p in s.phases if p.asked], ("phase",), "counter"),
    Family("answered_phones", "Phones that answered their phase to its end, once a phase.",
           lambda s: [((p.phase,), p.answered) for p in s.phases if p.asked], ("phase",), "counter"),
    Family("messages", "Messages to phones by what became of them.", _messages, ("phase", "step", "result"), "counter"),
    Family("message_bytes", "Payload bytes to phones (down) and from them (up).", _traffic,
           ("phase", "step", "direction"), "counter"),
    Family("refused_replies", "Refused replies by reason.", _refused, ("reason",), "counter"),
    *_estimates,
    Family("fleet_download_ratio", "Bytes that a phone downloads in a round as a ratio of the full model.",
           one(lambda s: s.fleet.download_ratio)),
    Family("cluster_phones", "Private estimate of a cluster's phones; a cluster keeps its name while it lasts.",
           lambda s: [((c.cluster,), c.phones.value) for c in s.clusters], ("cluster",)),
    Family("cluster_phones_stddev", "Standard deviation of fedcaptor_cluster_phones by the noise of its sums.",
           lambda s: [((c.cluster,), c.phones.stddev) for c in s.clusters], ("cluster",)),
    Family("cluster_macs_ratio", "MACs of the cluster's submodel as a ratio of the full model.",
           lambda s: [((c.cluster,), c.macs_ratio) for c in s.clusters], ("cluster",)),
    Family("cluster_parameters_ratio", "Parameters of the cluster's submodel as a ratio of the full model.",
           lambda s: [((c.cluster,), c.parameters_ratio) for c in s.clusters], ("cluster",)),
    Family("looks", "Looks of phones' photos that were published; absent where the run does not ask for them.",
           one(lambda s: len(s.looks) or None)),
    Family("look_phones", "Private estimate of the phones whose photos have a look.",
           lambda s: [((str(each.look),), each.phones.value) for each in s.looks], ("look",)),
    Family("look_phones_stddev", "Standard deviation of fedcaptor_look_phones by the noise of its sums.",
           lambda s: [((str(each.look),), each.phones.stddev) for each in s.looks], ("look",)),
    Family("look_adapted", "1 where the base model's batch norms are adapted to the look, else 0.",
           lambda s: [((str(each.look),), each.moved) for each in s.looks], ("look",)),
    Family("look_accuracy_ratio", "Accuracy on the server's labelled images, re-rendered in the look, by base model.",
           _accuracies, ("look", "model")),
    Family("tier_macs_ratio", "MACs of a device tier's delivered submodels as a ratio of the full model.",
           lambda s: [((t.tier,), t.macs_ratio) for t in s.tiers], ("tier",)),
    Family("tier_parameters_ratio", "Parameters of a device tier's delivered submodels, likewise.",
           lambda s: [((t.tier,), t.parameters_ratio) for t in s.tiers], ("tier",)),
    Family("tier_submodel_bytes", "Mean size of a device tier's delivered submodels.",
           lambda s: [((t.tier,), t.bytes) for t in s.tiers], ("tier",)),
    Family("privacy_noise_enabled", "1 when answers carry noise, 0 when it is off.", one(lambda s: s.noise)),
    Family("privacy_epsilon", "Epsilon spent so far; absent when noise is off.", one(lambda s: s.epsilon)),
    Family("privacy_server_epsilon", "The same towards a server that deviates from the protocol.",
           one(lambda s: s.epsilon_server)),
    Family("privacy_epsilon_budget", "Epsilon that phones allow within a period.", one(lambda s: s.epsilon_budget)),
    Family("privacy_delta", "Delta of the privacy guarantee.", one(lambda s: s.delta)),
    Family("privacy_period_seconds", "Period that the budget holds for.", one(lambda s: PERIOD_DAYS * 86400)),
    Family("privacy_rho", "zCDP rho spent so far, by kind of sum.",
           lambda s: [((each.sum,), each.rho) for each in s.sums], ("sum",)),
    Family("privacy_rho_budget", "zCDP rho that the epsilon of the budget is worth.", one(lambda s: s.rho_budget)),
    Family("privacy_noise_stddev", "Standard deviation of the noise in an entry of the last sum, by kind.",
           lambda s: [((each.sum,), each.stddev) for each in s.sums], ("sum",)),
    Family("sums", "Private sums that were taken, by kind.",
           lambda s: [((each.sum,), each.count) for each in s.sums], ("sum",), "counter"),
    Family("lost_sums", "Sums that came to nothing, by kind and reason.", _lost_sums, ("sum", "reason"), "counter"),
    Family("server_start_timestamp_seconds", "When the server app's process began with the run.", _process("started")),
    Family("server_cpu_seconds", "Processor time of the server app.", _process("cpu_seconds"), kind="counter"),
    Family("server_peak_memory_bytes", "Largest resident memory of the server app.", _process("peak_bytes")),
)  # fmt: skip
"""All metrics but histograms, summaries and infos."""


def metrics_of(runs: Mapping[str, Snapshot]) -> Iterator[Metric]:
    """Yield all metrics of runs by name."""
    yield from (metric for family in FAMILIES if (metric := family.of(runs)).samples)
    yield _infos("run", "Digest of the run's configuration.", {run: {"digest": s.run} for run, s in runs.items()})
    yield _infos("build", "Versions of the server app.", {run: s.build for run, s in runs.items()})
    yield _infos("model", "The full model: network, and digests of weights and channel groups.",
                 {run: s.model for run, s in runs.items()})  # fmt: skip
    rounds = HistogramMetricFamily("fedcaptor_round_duration_seconds", "Duration of rounds.", labels=["run"])
    phases = SummaryMetricFamily(
        "fedcaptor_phase_duration_seconds", "Duration of finished phases.", labels=["run", "phase"]
    )
    for run, snapshot in runs.items():
        buckets = [(floatToGoString(bound), count) for bound, count in snapshot.round_seconds.cumulative]
        rounds.add_metric([run], buckets, snapshot.round_seconds.sum)
        for phase in snapshot.phases:
            phases.add_metric([run, phase.phase], phase.count, phase.seconds)
    yield rounds
    yield phases


def _infos(name: str, text: str, values: Mapping[str, Mapping[str, str]]) -> Metric:
    family = InfoMetricFamily(f"fedcaptor_{name}", text, labels=["run"])
    for run, value in values.items():
        if value:
            family.add_metric([run], dict(value))
    return family
