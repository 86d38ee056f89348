"""Exporter: scrapes over HTTP give the snapshot's figures, and no state of the file breaks a scrape."""

import contextlib
import json
import logging
import math
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, StateError
from fedcaptor.common.messages import REASONS
from fedcaptor.server import exporter as exporters
from fedcaptor.server import snapshot as snapshots
from fedcaptor.server.exporter import SnapshotCollector, start_exporter
from fedcaptor.server.journal import LOST
from fedcaptor.server.snapshot import FILE, Cluster, Fleet, Rounds, RoundSeconds, Snapshot, read, write

RUN = "ab" * 32


class Nothing:
    def collect(self):
        return []


def make(**changes):
    fields = {
        "run": RUN,
        "status": "running",
        "updated": time.time() - 5,
        "round": 3,
        "phones": 40,
        "fleet": Fleet(macs_ratio=0.4, parameters_ratio=0.3, accuracy_before=0.8, accuracy_after=0.9),
        "clusters": [Cluster(cluster="0", phones=21.5, macs_ratio=0.35), Cluster(cluster="other", phones=-0.5)],
        "rounds": Rounds(finished=2, failed=1),
        "round_seconds": RoundSeconds.of([0.2, 4.0, 100_000.0]),
        "replies": {"ok": 70, "dropped": 3, "refused": 2, "lost": 4},
        "refused": {"nan": 1, "invented": 1},
        "lost": [{"sum": "usage", "reason": "late", "count": 2}],
        "epsilon": 1.5,
        "epsilon_server": 2.5,
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
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text_of(exporter))
        for sample in family.samples
    }


def test_a_scrape_gives_the_snapshots_figures(exporter, tmp_path):
    write(tmp_path / FILE, make())
    found = scrape(exporter)
    assert exporter.host == "127.0.0.1"
    assert found[("fedcaptor_snapshot_readable",)] == 1
    assert 5 <= found[("fedcaptor_snapshot_age_seconds",)] < 60
    assert found[("fedcaptor_run_info", ("run", RUN))] == 1
    assert found[("fedcaptor_run_status", ("status", "running"))] == 1
    assert found[("fedcaptor_run_status", ("status", "failed"))] == 0
    assert found[("fedcaptor_phones",)] == 40
    assert found[("fedcaptor_round",)] == 3
    assert found[("fedcaptor_simulated",)] == 1
    assert found[("fedcaptor_mark", ("mark", "sums not encrypted"))] == 1
    assert found[("fedcaptor_fleet_macs_ratio",)] == 0.4
    assert ("fedcaptor_fleet_download_ratio",) not in found
    assert found[("fedcaptor_fleet_accuracy_ratio", ("stage", "after"))] == 0.9
    assert found[("fedcaptor_cluster_phones", ("cluster", "0"))] == 21.5
    assert found[("fedcaptor_cluster_phones", ("cluster", "other"))] == -0.5
    assert found[("fedcaptor_cluster_macs_ratio", ("cluster", "0"))] == 0.35
    assert ("fedcaptor_cluster_macs_ratio", ("cluster", "other")) not in found
    assert found[("fedcaptor_rounds_total", ("result", "finished"))] == 2
    assert found[("fedcaptor_round_duration_seconds_bucket", ("le", "0.1"))] == 0
    assert found[("fedcaptor_round_duration_seconds_bucket", ("le", "5.0"))] == 2
    assert found[("fedcaptor_round_duration_seconds_bucket", ("le", "+Inf"))] == 3
    assert found[("fedcaptor_round_duration_seconds_count",)] == 3
    assert found[("fedcaptor_round_duration_seconds_sum",)] == pytest.approx(100_004.2)
    assert found[("fedcaptor_replies_total", ("result", "ok"))] == 70
    assert found[("fedcaptor_replies_total", ("result", "other"))] == 4
    assert found[("fedcaptor_refused_replies_total", ("reason", "nan"))] == 1
    assert found[("fedcaptor_refused_replies_total", ("reason", "other"))] == 1
    assert found[("fedcaptor_refused_replies_total", ("reason", "replayed"))] == 0
    assert found[("fedcaptor_lost_sums_total", ("reason", "late"), ("sum", "usage"))] == 2
    assert found[("fedcaptor_lost_sums_total", ("reason", "discarded"), ("sum", "scores"))] == 0
    assert found[("fedcaptor_privacy_epsilon",)] == 1.5
    assert found[("fedcaptor_privacy_server_epsilon",)] == 2.5
    assert found[("fedcaptor_privacy_delta",)] == 1e-6
    assert found[("fedcaptor_privacy_noise_enabled",)] == 1


def test_noise_off_is_an_infinite_epsilon(exporter, tmp_path):
    for epsilon in (None, math.inf):
        write(tmp_path / FILE, make(epsilon=epsilon))
        found = scrape(exporter)
        assert found[("fedcaptor_privacy_epsilon",)] == math.inf
        assert found[("fedcaptor_privacy_noise_enabled",)] == 0


@pytest.mark.parametrize("public", [False, True])
def test_small_cohorts_are_served_on_loopback_alone(public, tmp_path, caplog):
    """Public addresses are not bound here: a collector is told of them by `start_exporter`."""
    marks = load_config(None, ["testing.small_cohorts=true"]).marks(simulated=False)
    write(tmp_path / FILE, make(marks=marks))
    served = {metric.name for metric in SnapshotCollector(tmp_path, public).collect()}
    assert ("fedcaptor_phones" in served) == (not public)
    assert "fedcaptor_snapshot_readable" in served
    assert ("bind the exporter to 127.0.0.1" in caplog.text) == public
    write(tmp_path / FILE, make(marks=["noise off"]))
    assert "fedcaptor_phones" in {metric.name for metric in SnapshotCollector(tmp_path, public).collect()}


@pytest.mark.parametrize(("host", "public"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("::", True)])
def test_the_collector_is_told_whether_other_machines_read_it(host, public, tmp_path, monkeypatch):
    def no_server(host, port, registry):
        raise OSError(99, "not bound in tests")

    told = []
    monkeypatch.setattr(exporters, "_serve", no_server)
    monkeypatch.setattr(exporters, "SnapshotCollector", lambda directory, public: told.append(public) or Nothing())
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
        assert scrape(exporter) == {("fedcaptor_snapshot_readable",): 0}


def test_labels_are_few_and_name_no_device(exporter, tmp_path):
    names = [str(n) for n in range(32)] + ["other"]
    clusters = [Cluster(cluster=name, phones=1, macs_ratio=0.5) for name in names]
    write(tmp_path / FILE, make(clusters=clusters))
    labels = {}
    for name, *pairs in scrape(exporter):
        for label, value in pairs:
            labels.setdefault(label, set()).add(value)
            assert label != "run" or name == "fedcaptor_run_info"
    assert set(labels) == {"run", "status", "mark", "stage", "cluster", "result", "reason", "sum", "le"}
    assert labels["cluster"] == set(names)
    assert labels["reason"] == {*REASONS, "other", *LOST}
    assert labels["sum"] == {"usage", "scores", "outcome"}
    with pytest.raises(ValidationError, match="reason"):
        make(lost=[{"sum": "usage", "reason": "phone 17", "count": 1}])
    with pytest.raises(ValidationError, match="cluster"):
        make(clusters=[{"cluster": "32", "phones": 1}])
    with pytest.raises(ValidationError, match="once only"):
        make(clusters=[{"cluster": "1", "phones": 1}] * 2)


def test_a_missing_snapshot_is_served_as_unreadable(exporter, tmp_path):
    assert scrape(exporter) == {("fedcaptor_snapshot_readable",): 0}
    write(tmp_path / FILE, make())
    assert scrape(exporter)[("fedcaptor_snapshot_readable",)] == 1
    (tmp_path / FILE).unlink()
    assert scrape(exporter) == {("fedcaptor_snapshot_readable",): 0}


GOOD = make().model_dump(mode="json")
DAMAGED = {
    "empty": b"",
    "cut": json.dumps(GOOD).encode()[:-20],
    "not text": b"\xff\xfe\x00",
    "a list": b"[]",
    "nested": b"[" * 100_000,
    "huge": b" " * (snapshots.MAX_BYTES + 1),
    "other version": json.dumps(GOOD | {"version": 2}).encode(),
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
    assert scrape(exporter) == {("fedcaptor_snapshot_readable",): 0}
    with pytest.raises(StateError, match=r"snapshot\.json .*delete it"):
        read(tmp_path / FILE)


def test_a_directory_in_place_of_the_snapshot(exporter, tmp_path):
    (tmp_path / FILE).mkdir()
    assert scrape(exporter) == {("fedcaptor_snapshot_readable",): 0}


def test_a_problem_is_logged_once(exporter, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            text_of(exporter)
    assert sum("cannot be read" in record.message for record in caplog.records) == 1


def test_a_write_survives_the_round_trip(tmp_path):
    fleet = Fleet(macs_ratio=math.nan, accuracy_after=math.inf)
    original = make(fleet=fleet)
    write(tmp_path / FILE, original)
    assert read(tmp_path / FILE) == original
    assert original.fleet == Fleet()
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


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (package prometheus)")
@pytest.mark.parametrize("present", [True, False])
def test_promtool_has_no_complaints(exporter, tmp_path, present):
    if present:
        fleet = Fleet(
            macs_ratio=0.4,
            parameters_ratio=0.3,
            download_ratio=0.3,
            accuracy_before=0.8,
            accuracy_after=0.9,
            fallback_ratio=0.0,
        )
        write(tmp_path / FILE, make(fleet=fleet))
    command = ["promtool", "check", "metrics"]
    done = subprocess.run(command, input=text_of(exporter), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
