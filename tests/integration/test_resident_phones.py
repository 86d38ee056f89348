"""Resident phones behind a real SuperLink with TLS: they end with submodels of their own, and run nobody's code."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.deployment import (
    Fleet,
    free_port,
    registered_key,
    small_run,
    start_run,
    start_superlink,
    write_node_key,
    write_phone,
)
from fedcaptor.client.device import Device
from fedcaptor.client.fleet import connected
from fedcaptor.client.node_key import node_key
from fedcaptor.common.assets import asset
from fedcaptor.common.errors import LinkError
from fedcaptor.simulations.runner import SHIPPED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

OWNERS = ((0, 1), (5, 7, 9), (2, 8))
SHARED = small_run(
    len(OWNERS),
    """
[personal]
ladder = [0.3, 0.5, 0.8]
[delivery]
answer_seconds = 1
[rounds]
deadline = 120
[run]
rounds = 2
""",
)
FOREIGN = """
import pathlib
from flwr.clientapp import ClientApp

pathlib.Path("{mark}").touch()
app = ClientApp()


@app.query()
def answer(message, context):
    pathlib.Path("{mark}").touch()
    return message
"""
SERVER = """
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    nodes = list(grid.get_node_ids())
    sent = [grid.create_message(RecordDict({"x": ConfigRecord({})}), kind, node, "1")
            for node in nodes for kind in ("query", "train", "query.masked")]
    replies = list(grid.send_and_receive(sent, timeout=60))
    print("REPLIES", len(replies), sum(reply.has_error() for reply in replies))
"""


@pytest.fixture
def fleet(tmp_path: Path):
    running = Fleet(tmp_path)
    try:
        yield running
    finally:
        running.stop()


def wait_until(holds, seconds: float, fleet: Fleet) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, fleet.logs()
        time.sleep(0.2)


def test_resident_phones_end_with_submodels_and_run_no_code_of_others(fleet: Fleet, tmp_path: Path) -> None:
    port = start_superlink(fleet)
    files = [
        write_phone(tmp_path / f"phone{n}", port, registered_key(fleet, f"node{n}"), classes, SHARED)
        for n, classes in enumerate(OWNERS)
    ]

    for file in files:
        file.write_text(file.read_text() + "rest_seconds = 4\n")

    def start(number: int):
        return fleet.start("fedcaptor", "phone", "run", "--config", files[number], log=f"resident{number}")

    def connected_phones() -> int:
        return sum("connected as node" in path.read_text() for path in tmp_path.glob("resident?.log"))

    phones = [start(number) for number in range(len(OWNERS))]
    wait_until(lambda: connected_phones() == len(OWNERS), 60, fleet)

    # An outsider's bundle: Flower's own nodes would run it.
    mark = tmp_path / "foreign-code-ran"
    app = tmp_path / "foreign"
    app.mkdir()
    (app / "theirs.py").write_text(FOREIGN.format(mark=mark))
    (app / "server.py").write_text(SERVER)
    (app / "pyproject.toml").write_text(
        (asset("deploy/flower-app/pyproject.toml"))
        .read_text()
        .replace("fedcaptor.server.app:app", "server:app")
        .replace("fedcaptor.client.app:app", "theirs:app")
    )
    assert "REPLIES 9 9" in fleet.flwr("run", app, "own", "--stream")
    assert not mark.exists()

    # One phone is killed in the middle, and started again.
    server, run = tmp_path / "server", start_run(fleet, SHARED, len(OWNERS), rounds=1)
    wait_until(lambda: (tmp_path / "phone1" / "own" / "delivery.safetensors").exists(), 300, fleet)
    phones[1].kill()
    phones[1].wait()
    phones[1] = start(1)
    assert run.wait(600) == 0, fleet.logs()
    snapshot = json.loads((server / "snapshot.json").read_text())
    assert (snapshot["status"], snapshot["round"]) == ("waiting", 1), fleet.logs()
    assert start_run(fleet, SHARED, len(OWNERS), rounds=1).wait(600) == 0, fleet.logs()

    for number, classes in enumerate(OWNERS):
        folder = tmp_path / f"phone{number}" / "own"
        wait_until(lambda folder=folder: (folder / "outcome.json").exists(), 60, fleet)
        outcome = json.loads((folder / "outcome.json").read_text())
        assert outcome["plan"] is not None
        assert set(outcome["classes"]) & set(classes)
        assert (folder / "submodel.onnx").stat().st_size < SHIPPED.stat().st_size
        log = (folder / "phone.log").read_text()
        assert "connected as node" in log
        assert not any(f"phone{other}" in log for other in range(3) if other != number)
    snapshot = json.loads((server / "snapshot.json").read_text())
    assert (snapshot["status"], snapshot["round"], snapshot["phones"]) == ("ended", 2, 3), fleet.logs()

    for phone in phones:  # they rest
        wait_until(lambda pid=phone.pid: psutil.Process(pid).memory_info().rss < 50 << 20, 60, fleet)
    for phone in phones:
        phone.terminate()
        assert phone.wait(20) == 0
    fleet.stop()
    assert not fleet.left()


def test_why_a_phone_cannot_connect_is_said(fleet: Fleet, tmp_path: Path) -> None:
    port, ca = start_superlink(fleet), (tmp_path / "ca.pem").read_bytes()
    write_node_key(tmp_path / "stranger")
    stranger = node_key(tmp_path / "stranger")
    reasons = {}
    for name, (address, roots) in {
        "unknown key": (f"localhost:{port}", ca),
        "wrong authority": (f"localhost:{port}", None),
        "nobody there": (f"localhost:{free_port()}", ca),
    }.items():
        with pytest.raises(LinkError) as caught, connected(address, roots, stranger, 1 << 20):
            pass
        reasons[name] = str(caught.value)
    assert "register this phone's public key" in reasons["unknown key"]
    assert "give the operator's CA certificate" in reasons["wrong authority"]
    assert "compare address and network" in reasons["nobody there"]


def test_a_second_process_of_one_phone_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    write_node_key(tmp_path / "node0")
    file = write_phone(tmp_path / "phone0", free_port(), tmp_path / "node0", (0,), SHARED)
    (tmp_path / "ca.pem").write_text("")
    from fedcaptor.client.resident import only_one

    with only_one(Device.of_file(file).folder):
        second = fleet.start("fedcaptor", "phone", "run", "--config", file, log="second")
        assert second.wait(60) != 0
    assert "has a resident process already" in (tmp_path / "second.log").read_text()
