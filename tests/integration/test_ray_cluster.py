"""The engine `ray` on a cluster: here of two nodes on loopback, each with a raylet, workers and one core of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fedcaptor.common.assets import asset
from fedcaptor.common.config import load_config
from fedcaptor.simulations.ray_engine import LOOPBACK, QUIET, simulate_ray
from fedcaptor.simulations.runner import simulate

pytestmark = [pytest.mark.long, pytest.mark.cluster]

SCENARIO = asset("simulations/scenarios/flower.toml")
PHONES = 4
OVERRIDES = ["run.seed=1", "visualise.enabled=false", "clusters.iterations=1", "personal.ladder=[0.4]"]
OF_ONE_RUN = ("seconds", "peak_rss_bytes", "provenance")
MARK = "FEDCAPTOR_TEST_CLUSTER"


def processes(mark: str, name: str = "") -> list[psutil.Process]:
    """Processes of the cluster, by the mark in their environment, whose name starts so."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.name().startswith(name):
                found.append(process)
        except psutil.Error:
            continue
    return found


NODES = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False, "wait": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
cluster.add_node(**node)
cluster.wait_for_nodes(timeout=300)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""
"""Ray's own cluster for tests: `ray start` joins none on loopback."""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The mark of a Ray cluster that this process uses; all of its processes are ended by their ids."""
    mark, folder = uuid.uuid4().hex, tempfile.mkdtemp(prefix="fcr-")
    environment = {**os.environ, **QUIET, "RAY_TMPDIR": folder, MARK: mark}
    command, log = [sys.executable, "-c", NODES], Path(folder, "log")
    with log.open("wb") as errors:
        nodes = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert nodes.stdout is not None
        while ":" not in (line := nodes.stdout.readline()):
            assert line, log.read_text()
        monkeypatch.setenv("RAY_ADDRESS", line.strip())
        monkeypatch.setenv(LOOPBACK, "0")
        yield mark
    finally:
        nodes.communicate()
        left = processes(mark)
        for straggler in left:
            straggler.kill()
        psutil.wait_procs(left)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(900)
def test_phones_of_a_run_are_spread_over_the_nodes_of_a_cluster(cluster: str, tmp_path: Path) -> None:
    raylets, worked = {process.pid for process in processes(cluster, "raylet")}, set()
    assert len(raylets) == 2
    sockets = [socket for process in processes(cluster) for socket in process.net_connections("inet")]
    listening = {s.laddr.ip.removeprefix("::ffff:") for s in sockets if s.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}

    def on_line(line: str) -> None:
        worked.update(process.ppid() for process in processes(cluster, "ray::ClientApp"))

    ray = simulate_ray(SCENARIO, OVERRIDES, tmp_path / "ray", PHONES, on_line)
    assert worked == raylets
    assert {process.pid for process in processes(cluster, "raylet")} == raylets  # the cluster outlives the run
    config = load_config(SCENARIO, [*OVERRIDES, f"population.phones={PHONES}"])
    local = simulate(config, tmp_path / "local")
    for name in ray.keys() - OF_ONE_RUN:
        assert ray[name] == local[name], name
