"""A scenario ends alike on Flower's simulation engine and in one process, and leaves nothing running."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import psutil
import pytest

from fedcaptor.common.assets import asset
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import FedcaptorError
from fedcaptor.server.journal import Journal
from fedcaptor.simulations.ray_engine import MARK, simulate_ray
from fedcaptor.simulations.runner import simulate

pytestmark = pytest.mark.long

SCENARIO = asset("simulations/scenarios/flower.toml")
NODES = 10
OVERRIDES = [
    "run.seed=1",
    "visualise.steps=4",
    "clusters.iterations=1",
    "personal.ladder=[0.3, 0.4]",
    "planner.tolerance=0",
]
OF_ONE_RUN = ("seconds", "peak_rss_bytes", "provenance")


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """Processes of this test carry its mark, whatever else runs on the machine."""
    monkeypatch.setenv("FEDCAPTOR_TEST", uuid.uuid4().hex)


def marked():
    """Processes that the engine started for this test and that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if MARK in environment and environment.get("FEDCAPTOR_TEST") == os.environ["FEDCAPTOR_TEST"]:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def listening():
    """Addresses on which the engine's processes accept connections."""
    sockets = [s for pid in marked() for s in psutil.Process(pid).net_connections("inet")]
    return {s.laddr.ip.removeprefix("::ffff:") for s in sockets if s.status == psutil.CONN_LISTEN}


def without_bytes(outcome):
    """Of masked sums: the graph depends on the order in which phones answered, and so do the sizes of its messages."""
    sizes = ("bytes_down", "bytes_up", "traffic")
    tally = {name: value for name, value in outcome.get("tally", {}).items() if name not in sizes}
    return {**outcome, "tally": tally}


def phases(directory):
    """All that the server computed: tensors of every phase, and its outcome without bytes of framing."""
    config = json.loads((directory / "config.json").read_text())
    run = json.loads((directory / "snapshot.json").read_text())["run"]
    journal = Journal(f"sqlite:///{directory / 'state.db'}", run)
    try:
        return config, {key: journal.stored(*key) for key in journal.seconds()}
    finally:
        journal.close()


@pytest.mark.timeout(400)
def test_flowers_engine_and_the_in_process_grid_agree(tmp_path):
    lines = []
    ray = simulate_ray(SCENARIO, OVERRIDES, tmp_path / "ray", NODES, lines.append)
    assert not marked()
    assert any("10 phones" in line for line in lines)
    config = load_config(SCENARIO, [*OVERRIDES, f"population.phones={NODES}"])
    local = simulate(config, tmp_path / "local")
    assert {k: v for k, v in ray.items() if k not in OF_ONE_RUN} == {
        k: v for k, v in local.items() if k not in OF_ONE_RUN
    }

    (ray_config, ray_phases), (local_config, local_phases) = phases(tmp_path / "ray"), phases(tmp_path / "local")
    assert ray_config == local_config
    assert ray_phases.keys() == local_phases.keys()
    assert ray["clusters"] > 1
    for key, (outcome, tensors) in local_phases.items():
        assert without_bytes(ray_phases[key][0]) == without_bytes(outcome), key
        for name, value in tensors.items():
            np.testing.assert_array_equal(ray_phases[key][1][name], value, err_msg=f"{key} {name}")
    assert (tmp_path / "ray" / "report.html").stat().st_size > 10_000


@pytest.mark.timeout(200)
def test_an_error_of_the_app_is_told_and_the_log_is_kept(tmp_path):
    with pytest.raises(FedcaptorError, match=r"faults.*log: .*run\.log") as caught:
        simulate_ray(SCENARIO, ["faults.dropout=0.1"], tmp_path / "out", 2, lambda line: None)
    assert not marked()
    log = Path(str(caught.value).rpartition("log: ")[2].rstrip(")"))
    assert "ConfigError" in log.read_text()
    assert log.parent.name.startswith("fedcaptor-")
    shutil.rmtree(log.parent)


@pytest.mark.timeout(200)
def test_ctrl_c_stops_everything_and_until_then_only_loopback_is_served(tmp_path):
    code = (
        "from pathlib import Path; from simulations.ray_engine import simulate_ray; "
        f"simulate_ray(Path({str(SCENARIO)!r}), [], Path({str(tmp_path / 'out')!r}), {NODES})"
    )
    root = asset("pyproject.toml").parent
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("messages"):
                break
        assert len(marked()) > 3
        assert listening() == {"127.0.0.1"}
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=180)
    finally:
        process.kill()
    for _ in range(50):
        if not marked():
            break
        time.sleep(0.1)
    assert not marked()
