"""How many messages one server carries: FedCAPTOR's rounds beside Flower's own FedAvg loop, phones and bytes alike."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import psutil
from typer import Option

from benchmarks.command import SHARED, Benchmark
from benchmarks.deployment import Fleet, cpu_seconds, registered_keys, small_run, start_run, start_superlink
from benchmarks.progress import OnPhase
from benchmarks.record import Row, numbers
from fedcaptor.common.errors import StateError

SETTINGS = """
[delivery]
answer_seconds = 0
[rounds]
deadline = 1800
poll = 0.2
[personal]
ladder = [0.5]
"""
APP = Path(__file__).parent / "fedavg-app"
_CONNECTED_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class FleetLoad(Benchmark):
    """Resident phones, many in one process, that one SuperLink with TLS and node keys serves on this machine.

    First a round of FedCAPTOR without noise (four masked sums, a delivery), then Flower's FedAvg over arrays of its
    messages' mean size, with as many messages, through the same SuperLink. CPU seconds are of SuperLink and of the
    run's process. The phones share the cores with them, so messages a second are of the whole machine. A row takes 50
    messages a phone: with 40 phones a quarter of an hour, and longer where the machine does other things.

    Example: python -m benchmarks fleet --phones 10,40 --json benchmarks/results/fleet.json
    """

    phones: Annotated[str, Option(help="Numbers of phones.")] = "10,40"
    seed: Annotated[int, Option(help="Of the population."), SHARED] = 0

    def row_keys(self) -> list[Row]:
        return [{"phones": count} for count in numbers(self.phones)]

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase) -> dict[str, Any]:
        """Return one row, from a SuperLink of its own that is stopped again."""
        with TemporaryDirectory(prefix="fedcaptor-fleet-") as folder:
            fleet = Fleet(Path(folder))
            try:
                return _both(fleet, key["phones"], self.seed)
            finally:
                fleet.stop()


def _both(fleet: Fleet, phones: int, seed: int) -> dict[str, Any]:
    settings, port = small_run(phones, f"{SETTINGS}[run]\nseed = {seed}\n"), start_superlink(fleet)
    registered_keys(fleet, [f"node{number}" for number in range(phones)])
    (fleet.folder / "config.toml").write_text(settings)
    served = Path(__file__).with_name("fleet_phones.py")
    _wait(fleet, phones, fleet.start("python", served, fleet.folder, port, phones, log="phones"))
    ours = _measured(fleet, phones, lambda: start_run(fleet, settings, phones))
    payload = (ours["received_bytes"] + ours["sent_bytes"]) / (2 * ours["messages"])
    rounds = round(ours["messages"] / phones)
    app = shutil.copytree(APP, fleet.folder / "fedavg-app")
    config = f"phones={phones} rounds={rounds} bytes={round(payload)}"
    theirs = _measured(
        fleet, phones, lambda: fleet.start("flwr", "run", app, "own", "--stream", "--run-config", config)
    )
    return {
        "payload_bytes": round(payload),
        "fedcaptor": ours,
        "fedavg": theirs,
        "messages_per_second_ratio": ours["messages_per_second"] / theirs["messages_per_second"],
    }


def _measured(fleet: Fleet, phones: int, start: Any) -> dict[str, Any]:
    superlink = psutil.Process(fleet.started[0].pid)
    before, cpu, begun = _counted(fleet), cpu_seconds(superlink), time.monotonic()
    if start().wait(3600):
        raise StateError(f"the run failed: {fleet.logs()}")
    seconds, after = time.monotonic() - begun, _counted(fleet)
    spent = cpu_seconds(superlink) - cpu
    messages = after["messages"] - before["messages"]
    return {
        "messages": messages,
        "received_bytes": after["received_bytes"] - before["received_bytes"],
        "sent_bytes": after["sent_bytes"] - before["sent_bytes"],
        "seconds": seconds,
        "messages_per_second": messages / seconds,
        "server_cpu_seconds_per_phone": spent / phones,
        "server_cpu_seconds_per_message": spent / max(messages, 1),
        "superlink_rss_bytes": superlink.memory_info().rss,
    }


def _counted(fleet: Fleet) -> dict[str, int]:
    return dict(json.loads((fleet.folder / "phones.json").read_text()))


def _wait(fleet: Fleet, phones: int, process: subprocess.Popen[bytes]) -> None:
    end, file = time.monotonic() + _CONNECTED_SECONDS, fleet.folder / "phones.json"
    while not file.exists() or _counted(fleet)["connected"] < phones:
        if process.poll() is not None:
            raise StateError(f"the phones' process ended with {process.returncode}: {fleet.logs()}")
        if time.monotonic() > end:
            raise StateError(f"not all phones are connected after {_CONNECTED_SECONDS} s: {fleet.logs()}")
        time.sleep(0.2)
