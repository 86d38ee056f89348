"""Exporter: scrapes over HTTP give the snapshot's figures, and no state of the file breaks a scrape."""

import base64
import contextlib
import json
import logging
import math
import os
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, StateError
from fedcaptor.common.messages import REASONS
from fedcaptor.server import exporter as exporters
from fedcaptor.server import snapshot as snapshots
from fedcaptor.server.collect import MASKED_STEPS, RESULTS
from fedcaptor.server.exporter import Access, RunsCollector, start_exporter
from fedcaptor.server.journal import LOST
from fedcaptor.server.metrics import RUNS, status_of
from fedcaptor.server.snapshot import (
    FILE,
    POSTPONED,
    Cluster,
    Figure,
    Fleet,
    Look,
    Messages,
    Phase,
    Present,
    Process,
    RoundSeconds,
    Snapshot,
    Spent,
    Tier,
    read,
    write,
)
from tests.programs import program

RUN = "ab" * 32


class Nothing:
    def collect(self):
        return []


def make(**changes):
    now = time.time()
    fields = {
        "run": RUN,
        "status": "running",
        "started": now - 100,
        "heartbeat": now - 5,
        "build": {"version": "0.1.0", "python": "3.11"},
        "model": {"network": "small-cnn", "weights": "abc"},
        "process": Process(started=now - 100, cpu_seconds=12.5, peak_bytes=1 << 20),
        "present": Present(
            phase="usage", started=now - 50, deadline=now + 50, step="keys", asked=40, replied=7, online=39
        ),
        "round": 3,
        "rounds_planned": 5,
        "finished": 2,
        "round_seconds": RoundSeconds.of([0.2, 4.0, 1_000_000.0]),
        "phases": [
            Phase(phase="usage", count=3, seconds=30.0, asked=120, answered=110),
            Phase(phase="plans", count=2, seconds=9.0),
        ],
        "phones": 40,
        "enrolled": 44,
        "fleet": Fleet(
            phones=Figure(value=39.5, stddev=4.0),
            macs_ratio=Figure(value=0.25, stddev=0.15),
            agreement_ratio=Figure(value=0.9, stddev=0.05),
        ),
        "clusters": [
            Cluster(cluster="0", phones=Figure(value=21.5, stddev=2.0), macs_ratio=0.35),
            Cluster(cluster="other", phones=Figure(value=-0.5, stddev=2.0)),
        ],
        "tiers": [Tier(tier="low", macs_ratio=0.2, parameters_ratio=0.1, bytes=1000.0)],
        "looks": [
            Look(look=0, phones=Figure(value=30.5, stddev=3.0), shipped=0.7, adapted=0.8, moved=True),
            Look(look=1, phones=Figure(value=9.5, stddev=3.0), shipped=0.9, adapted=0.9, moved=False),
        ],
        "messages": [
            Messages(phase="usage", step="vector", results={"ok": 70, "late": 3, "lost": 4}, down=500, up=600)
        ],
        "refused": {"nan": 1, "invented": 1},
        "sums": [Spent(sum="usage", count=3, rho=0.5, stddev=1.5), Spent(sum="scores", count=1)],
        "lost": [{"sum": "usage", "reason": "late", "count": 2}],
        "noise": True,
        "epsilon": 1.5,
        "epsilon_server": 2.5,
        "epsilon_budget": 8.0,
        "rho_budget": 1.25,
        "delta": 1e-6,
        "simulated": True,
        "marks": ["sums not encrypted"],
    }
    return Snapshot(**(fields | changes))


@pytest.fixture
def exporter(tmp_path):
    with start_exporter(tmp_path, port=0) as running:
        yield running


def text_of(exporter):
    with urllib.request.urlopen(exporter.url, timeout=10) as response:
        assert response.status == 200
        return response.read().decode()


def scrape(exporter):
    """Samples by name and labels, that of the run aside; without those of the exporter's process."""
    return {
        (sample.name, *sorted((k, v) for k, v in sample.labels.items() if k != "run")): sample.value
        for family in text_string_to_metric_families(text_of(exporter))
        for sample in family.samples
        if not sample.name.startswith("process_")
    }


def test_a_scrape_gives_the_snapshots_figures(exporter, tmp_path):
    snapshot = make()
    write(tmp_path / FILE, snapshot)
    found = scrape(exporter)
    assert exporter.host == "127.0.0.1"
    expected = {
        ("fedcaptor_runs",): 1,
        ("fedcaptor_snapshot_readable",): 1,
        ("fedcaptor_run_info", ("digest", RUN)): 1,
        ("fedcaptor_build_info", ("python", "3.11"), ("version", "0.1.0")): 1,
        ("fedcaptor_model_info", ("network", "small-cnn"), ("weights", "abc")): 1,
        ("fedcaptor_run_status", ("status", "running")): 1,
        ("fedcaptor_run_status", ("status", "failed")): 0,
        ("fedcaptor_run_postponed", ("reason", "phones")): 0,
        ("fedcaptor_run_start_timestamp_seconds",): snapshot.started,
        ("fedcaptor_run_heartbeat_timestamp_seconds",): snapshot.heartbeat,
        ("fedcaptor_phase", ("phase", "usage")): 1,
        ("fedcaptor_phase", ("phase", "plans")): 0,
        ("fedcaptor_phase_deadline_timestamp_seconds",): snapshot.present.deadline,
        ("fedcaptor_phase_asked_phones",): 40,
        ("fedcaptor_phase_replied_phones",): 7,
        ("fedcaptor_phones",): 40,
        ("fedcaptor_phones_online",): 39,
        ("fedcaptor_phones_enrolled",): 44,
        ("fedcaptor_phones_other_weights",): 0,
        ("fedcaptor_looks",): 2,
        ("fedcaptor_look_phones", ("look", "0")): 30.5,
        ("fedcaptor_look_phones_stddev", ("look", "1")): 3.0,
        ("fedcaptor_look_adapted", ("look", "1")): 0,
        ("fedcaptor_look_accuracy_ratio", ("look", "0"), ("model", "adapted")): 0.8,
        ("fedcaptor_asked_phones_total", ("phase", "usage")): 120,
        ("fedcaptor_answered_phones_total", ("phase", "usage")): 110,
        ("fedcaptor_round",): 3,
        ("fedcaptor_rounds_planned",): 5,
        ("fedcaptor_rounds_finished_total",): 2,
        ("fedcaptor_simulated",): 1,
        ("fedcaptor_mark", ("mark", "sums not encrypted")): 1,
        ("fedcaptor_fleet_macs_ratio",): 0.25,
        ("fedcaptor_fleet_macs_ratio_stddev",): 0.15,
        ("fedcaptor_fleet_agreement_ratio",): 0.9,
        ("fedcaptor_cluster_phones", ("cluster", "0")): 21.5,
        ("fedcaptor_cluster_phones_stddev", ("cluster", "other")): 2.0,
        ("fedcaptor_cluster_macs_ratio", ("cluster", "0")): 0.35,
        ("fedcaptor_tier_submodel_bytes", ("tier", "low")): 1000,
        ("fedcaptor_round_duration_seconds_bucket", ("le", "1.0")): 1,
        ("fedcaptor_round_duration_seconds_bucket", ("le", "4.0")): 2,
        ("fedcaptor_round_duration_seconds_bucket", ("le", "131072.0")): 2,
        ("fedcaptor_round_duration_seconds_bucket", ("le", "+Inf")): 3,
        ("fedcaptor_round_duration_seconds_sum",): pytest.approx(1_000_004.2),
        ("fedcaptor_phase_duration_seconds_sum", ("phase", "usage")): 30,
        ("fedcaptor_phase_duration_seconds_count", ("phase", "plans")): 2,
        ("fedcaptor_messages_total", ("phase", "usage"), ("result", "ok"), ("step", "vector")): 70,
        ("fedcaptor_messages_total", ("phase", "usage"), ("result", "offline"), ("step", "vector")): 0,
        ("fedcaptor_messages_total", ("phase", "usage"), ("result", "other"), ("step", "vector")): 4,
        ("fedcaptor_message_bytes_total", ("direction", "up"), ("phase", "usage"), ("step", "vector")): 600,
        ("fedcaptor_refused_replies_total", ("reason", "nan")): 1,
        ("fedcaptor_refused_replies_total", ("reason", "other")): 1,
        ("fedcaptor_refused_replies_total", ("reason", "replayed")): 0,
        ("fedcaptor_lost_sums_total", ("reason", "late"), ("sum", "usage")): 2,
        ("fedcaptor_lost_sums_total", ("reason", "discarded"), ("sum", "scores")): 0,
        ("fedcaptor_privacy_epsilon",): 1.5,
        ("fedcaptor_privacy_server_epsilon",): 2.5,
        ("fedcaptor_privacy_epsilon_budget",): 8,
        ("fedcaptor_privacy_rho", ("sum", "usage")): 0.5,
        ("fedcaptor_privacy_rho_budget",): 1.25,
        ("fedcaptor_privacy_noise_stddev", ("sum", "usage")): 1.5,
        ("fedcaptor_privacy_period_seconds",): 90 * 86400,
        ("fedcaptor_privacy_delta",): 1e-6,
        ("fedcaptor_privacy_noise_enabled",): 1,
        ("fedcaptor_sums_total", ("sum", "scores")): 1,
        ("fedcaptor_server_cpu_seconds_total",): 12.5,
        ("fedcaptor_server_peak_memory_bytes",): 1 << 20,
    }
    assert {key: found.get(key) for key in expected} == expected
    absent = {
        "fleet_download_ratio",
        "run_end_timestamp_seconds",
        "fleet_fallback_ratio",
        "fleet_fallback_ratio_stddev",
    }
    assert not {f"fedcaptor_{name}" for name in absent} & {name for name, *_ in found}
    assert ("fedcaptor_cluster_macs_ratio", ("cluster", "other")) not in found
    assert ("fedcaptor_privacy_rho", ("sum", "scores")) not in found
    with urllib.request.urlopen(exporter.url, timeout=10) as response:
        assert b"process_resident_memory_bytes" in response.read()


def test_noise_off_is_no_figure_and_no_gauge_is_infinite(exporter, tmp_path):
    for epsilon in (None, math.inf):
        write(tmp_path / FILE, make(epsilon=epsilon, epsilon_server=math.nan, noise=False))
        found = scrape(exporter)
        assert ("fedcaptor_privacy_epsilon",) not in found
        assert ("fedcaptor_privacy_server_epsilon",) not in found
        assert found[("fedcaptor_privacy_noise_enabled",)] == 0
        assert all(map(math.isfinite, found.values()))


def test_running_stopped_failed_and_killed_are_told_apart(exporter, tmp_path):
    now = time.time()
    ways = {
        "running": make(heartbeat=now),
        "waiting": make(status="waiting", heartbeat=now - 9e6),
        "ended": make(status="ended", ended=now - 9e6, heartbeat=now - 9e6),
        "stopped": make(status="stopped", ended=now),
        "failed": make(status="failed", ended=now),
        "postponed": make(status="postponed", postponed="phones", heartbeat=now - 9e6),
        "lost": make(heartbeat=now - 120),
    }
    assert {status_of(snapshot, now) for snapshot in ways.values()} == set(ways)
    for status, snapshot in ways.items():
        write(tmp_path / FILE, snapshot)
        found = scrape(exporter)
        statuses = {key[1][1]: value for key, value in found.items() if key[0] == "fedcaptor_run_status"}
        assert statuses == {other: other == status for other in ways}
        assert found["fedcaptor_run_postponed", ("reason", "phones")] == (status == "postponed")
        over = status in ("ended", "stopped", "failed")
        assert (("fedcaptor_run_end_timestamp_seconds",) in found) == over


def test_all_runs_of_a_deployment_have_one_exporter(exporter, tmp_path):
    for name, phones in (("spring", 30), ("summer", 50), ("broken", 0)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / FILE, make(phones=phones))
    (tmp_path / "broken" / FILE).write_text("{}")
    (tmp_path / "notes").mkdir()
    families = {family.name: family for family in text_string_to_metric_families(text_of(exporter))}
    phones = {sample.labels["run"]: sample.value for sample in families["fedcaptor_phones"].samples}
    assert phones == {"spring": 30, "summer": 50}
    readable = {sample.labels["run"]: sample.value for sample in families["fedcaptor_snapshot_readable"].samples}
    assert readable == {"spring": 1, "summer": 1, "broken": 0}
    assert families["fedcaptor_runs"].samples[0].value == 3
    assert text_of(exporter).count("# TYPE fedcaptor_phones gauge") == 1


def test_series_are_bounded(exporter, tmp_path):
    """The most that snapshots can hold: every label at its bound, in more runs than are exported."""
    kinds, clusters = ("usage", "scores", "deliver", "outcome"), [str(n) for n in range(32)] + ["other"]
    figure = Figure(value=0.5, stddev=0.1)
    full = make(
        fleet=Fleet(**{name: figure for name in Fleet.model_fields if name != "download_ratio"}, download_ratio=1.0),
        clusters=[Cluster(cluster=name, phones=figure, macs_ratio=0.5, parameters_ratio=0.5) for name in clusters],
        tiers=[Tier(tier=f"tier {n}", macs_ratio=1, parameters_ratio=1, bytes=1) for n in range(4)],
        looks=[Look(look=n, phones=figure, shipped=0.5, adapted=0.5, moved=True) for n in range(8)],
        phases=[Phase(phase=kind, count=1, seconds=1, asked=1, answered=1) for kind in kinds],
        messages=[
            Messages(phase=kind, step=step, results=dict.fromkeys((*RESULTS, "invented"), 1))
            for kind in kinds
            for step in (*MASKED_STEPS, "invented")
        ],
        sums=[Spent(sum=kind, count=1, rho=1, stddev=1) for kind in kinds],
    )
    for number in range(RUNS + 3):
        (tmp_path / f"run-{number}").mkdir()
        write(tmp_path / f"run-{number}" / FILE, full)
    samples = [s for family in text_string_to_metric_families(text_of(exporter)) for s in family.samples]
    runs = {sample.labels["run"] for sample in samples if "run" in sample.labels}
    assert len(runs) == RUNS
    of_one = [sample for sample in samples if sample.labels.get("run") == min(runs)]
    assert 400 < len(of_one) <= 600
    labels = {}
    for sample in of_one:
        for label, value in sample.labels.items():
            labels.setdefault(label, set()).add(value)
            info = ("fedcaptor_run_info", "fedcaptor_build_info", "fedcaptor_model_info")
            assert label not in ("digest", "version", "weights") or sample.name in info
    assert labels["cluster"] == set(clusters)
    assert labels["reason"] == {*REASONS, "other", *LOST, *POSTPONED}
    assert labels["step"] == {*MASKED_STEPS, "other"}
    assert labels["result"] == {*RESULTS, "other"}
    assert set(labels) == {
        "run", "digest", "version", "python", "network", "weights", "status", "mark", "phase", "step", "result",
        "direction", "reason", "cluster", "tier", "look", "model", "sum", "le",
    }  # fmt: skip


@pytest.mark.parametrize("public", [False, True])
def test_small_cohorts_are_served_on_loopback_alone(public, tmp_path, caplog):
    """Public addresses are not bound here: a collector is told of them by `start_exporter`."""
    marks = load_config(None, ["testing.small_cohorts=true"]).marks(simulated=False)
    write(tmp_path / FILE, make(marks=marks))
    served = {metric.name for metric in RunsCollector(tmp_path, public).collect()}
    assert ("fedcaptor_phones" in served) == (not public)
    assert "fedcaptor_snapshot_readable" in served
    assert ("bind the exporter to 127.0.0.1" in caplog.text) == public
    write(tmp_path / FILE, make(marks=["noise off"]))
    assert "fedcaptor_phones" in {metric.name for metric in RunsCollector(tmp_path, public).collect()}


@pytest.mark.parametrize(("host", "public"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("::", True)])
def test_the_collector_is_told_whether_other_machines_read_it(host, public, tmp_path, monkeypatch):
    def no_server(host, port, app, tls):
        raise OSError(99, "not bound in tests")

    told = []
    monkeypatch.setattr(exporters, "_serve", no_server)
    monkeypatch.setattr(
        exporters, "RunsCollector", lambda directory, public, certificates: told.append(public) or Nothing()
    )
    with pytest.raises(ConfigError, match="not bound"):
        start_exporter(tmp_path, host)
    assert told == [public]


@pytest.mark.slow
def test_half_requests_hold_few_threads_and_not_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(exporters, "CONNECTIONS", 3)
    monkeypatch.setattr(exporters._Handler, "timeout", 0.5)
    before = threading.active_count()
    with start_exporter(tmp_path, port=0) as exporter, contextlib.ExitStack() as held:
        for _ in range(30):
            half = held.enter_context(socket.create_connection((exporter.host, exporter.port), 10))
            half.sendall(b"GET /metrics HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            assert half.recv(1) == b""  # the last one is closed at once
        assert threading.active_count() <= before + 1 + 3
        end = time.monotonic() + 10
        while threading.active_count() > before + 1 and time.monotonic() < end:
            time.sleep(0.02)
        assert scrape(exporter) == {("fedcaptor_runs",): 0}


def test_a_snapshot_holds_no_label_that_is_not_known():
    with pytest.raises(ValidationError, match="reason"):
        make(lost=[{"sum": "usage", "reason": "phone 17", "count": 1}])
    with pytest.raises(ValidationError, match="cluster"):
        make(clusters=[{"cluster": "32", "phones": {"value": 1, "stddev": 1}}])
    with pytest.raises(ValidationError, match="once only"):
        make(clusters=[{"cluster": "1", "phones": {"value": 1, "stddev": 1}}] * 2)


def test_a_folder_without_runs_is_served_as_such(exporter, tmp_path):
    assert scrape(exporter) == {("fedcaptor_runs",): 0}
    write(tmp_path / FILE, make())
    assert scrape(exporter)[("fedcaptor_snapshot_readable",)] == 1
    (tmp_path / FILE).unlink()
    assert scrape(exporter) == {("fedcaptor_runs",): 0}


UNREADABLE = {("fedcaptor_runs",): 1, ("fedcaptor_snapshot_readable",): 0}
GOOD = make().model_dump(mode="json")
DAMAGED = {
    "empty": b"",
    "cut": json.dumps(GOOD).encode()[:-20],
    "not text": b"\xff\xfe\x00",
    "a list": b"[]",
    "nested": b"[" * 100_000,
    "huge": b" " * (snapshots.MAX_BYTES + 1),
    "other version": json.dumps(GOOD | {"version": 1}).encode(),
    "unknown field": json.dumps(GOOD | {"device": "x"}).encode(),
    "negative count": json.dumps(GOOD | {"phones": -1}).encode(),
    "bad histogram": json.dumps(GOOD | {"round_seconds": {"buckets": {"1": 3}, "sum": 1, "count": 3}}).encode(),
    "falling histogram": json.dumps(
        GOOD | {"round_seconds": {"buckets": {"1": 3, "+Inf": 2}, "sum": 1, "count": 2}}
    ).encode(),
    "words as bounds": json.dumps(GOOD | {"round_seconds": {"buckets": {"a": 0}, "sum": 0, "count": 0}}).encode(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_snapshot_is_served_as_unreadable(exporter, tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    assert scrape(exporter) == UNREADABLE
    with pytest.raises(StateError, match=r"snapshot\.json .*delete it"):
        read(tmp_path / FILE)


def test_a_directory_in_place_of_the_snapshot(exporter, tmp_path):
    (tmp_path / FILE).mkdir()
    assert scrape(exporter) == UNREADABLE


def test_a_problem_is_logged_once(exporter, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            text_of(exporter)
    assert sum("start a run" in record.message for record in caplog.records) == 1


def test_a_write_survives_the_round_trip(tmp_path):
    original = make(fleet=Fleet(download_ratio=math.nan), epsilon=math.inf)
    write(tmp_path / FILE, original)
    assert read(tmp_path / FILE) == original
    assert (original.fleet, original.epsilon) == (Fleet(), None)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_readers_never_see_a_half_written_snapshot(tmp_path):
    path = tmp_path / FILE
    write(path, make())
    done = threading.Event()

    def keep_writing():
        for n in range(150):
            write(path, make(round=n, marks=["x" * (n % 100)] * (n % 16)))
        done.set()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    while not done.is_set():
        read(path)
    writer.join()
    assert read(path).round == 149


def test_a_kill_before_the_replacement_leaves_the_old_snapshot(tmp_path, monkeypatch, caplog):
    path = tmp_path / FILE
    write(path, make(round=1))

    def fail(*_):
        raise OSError(28, "No space left on device")

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            write(path, make(round=2))
        assert read(path).round == 1
        assert [found.name for found in tmp_path.iterdir()] == [FILE]
    assert "No space left" in caplog.text


def test_a_directory_that_is_missing_is_logged_and_no_more(tmp_path, caplog):
    write(tmp_path / "missing" / FILE, make())
    assert "cannot be written" in caplog.text


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} .*another port"):
            start_exporter(tmp_path, port=port)


@pytest.mark.parametrize(
    ("host", "port"), [("", 0), (" ", 0), ("127.0.0.1", -1), ("127.0.0.1", 65536), ("192.0.2.1", 0)]
)
def test_addresses_that_cannot_be_used(tmp_path, host, port):
    with pytest.raises(ConfigError, match="exporter"):
        start_exporter(tmp_path, host, port)


@pytest.mark.slow
def test_the_port_is_free_again_after_close(tmp_path):
    first = start_exporter(tmp_path, port=0)
    first.close()
    with start_exporter(tmp_path, port=first.port) as second:
        assert scrape(second)


@pytest.mark.parametrize("present", [True, False])
def test_promtool_has_no_complaints(exporter, tmp_path, present):
    if present:
        write(tmp_path / FILE, make())
    command = [program("promtool"), "check", "metrics"]
    done = subprocess.run(command, input=text_of(exporter), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=exporter"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem",
         "-out", folder / "cert.pem"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


def asking(exporter, word):
    header = "Basic " + base64.b64encode(f"prometheus:{word}".encode()).decode()
    return urllib.request.Request(exporter.url, headers={"Authorization": header})


def test_tls_and_a_password(tmp_path, pair):
    certificate, key = pair
    secret = tmp_path / "password"
    secret.write_text("prometheus:a long word\n")
    secret.chmod(0o600)
    access = Access(certificate, key, secret)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with start_exporter(tmp_path, port=0, access=access) as exporter:
        assert exporter.url.startswith("https://")
        with pytest.raises(urllib.error.URLError, match="certificate verify failed"):
            urllib.request.urlopen(exporter.url, timeout=10)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(exporter.url, timeout=10, context=trusting)
        with urllib.request.urlopen(asking(exporter, "a long word"), timeout=10, context=trusting) as response:
            assert b"fedcaptor_runs" in response.read()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(asking(exporter, "another word"), timeout=10, context=trusting)
        plain = socket.create_connection((exporter.host, exporter.port), 10)
        with plain, contextlib.suppress(ConnectionError):
            plain.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b"fedcaptor" not in plain.recv(4096)


def test_access_that_protects_nothing_is_refused(tmp_path, pair):
    certificate, key = pair
    secret = tmp_path / "password"
    secret.write_text("prometheus:word")
    with pytest.raises(ConfigError, match="read by others"):
        start_exporter(tmp_path, port=0, access=Access(password=secret))
    secret.chmod(0o600)
    with pytest.raises(ConfigError, match="plain text"):
        start_exporter(tmp_path, "0.0.0.0", 0, Access(password=secret))
    secret.write_text("word")
    with pytest.raises(ConfigError, match="user:password"):
        start_exporter(tmp_path, port=0, access=Access(password=secret))
    with pytest.raises(ConfigError, match="give both"):
        start_exporter(tmp_path, port=0, access=Access(certificate=certificate))
    with pytest.raises(ConfigError, match="cannot be used for TLS"):
        start_exporter(tmp_path, port=0, access=Access(key, certificate))


def test_the_expiry_of_certificates(tmp_path, pair):
    with start_exporter(tmp_path, port=0, certificates=[pair[0]]) as exporter:
        found = scrape(exporter)[("fedcaptor_certificate_expiry_timestamp_seconds", ("certificate", "cert.pem"))]
        assert 28 * 86400 < found - time.time() < 31 * 86400
    with pytest.raises(ConfigError, match="no certificate"):
        start_exporter(tmp_path, port=0, certificates=[pair[1]])
    with pytest.raises(ConfigError, match="does not exist"):
        start_exporter(tmp_path, port=0, certificates=[tmp_path / "missing.pem"])
