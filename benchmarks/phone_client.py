"""What a phone's client costs: memory, CPU seconds of a message, and how long a round takes over real processes."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import psutil
from typer import Option

from benchmarks.command import SHARED, Benchmark
from benchmarks.deployment import (
    Fleet,
    cpu_seconds,
    registered_key,
    small_run,
    start_phone,
    start_run,
    start_superlink,
    write_phone,
)
from benchmarks.progress import OnPhase
from benchmarks.record import Row, numbers
from fedcaptor.common.errors import StateError
from fedcaptor.server.journal import Journal

SETTINGS = """
[delivery]
answer_seconds = {pace}
[rounds]
deadline = 300
poll = 0.2
"""
_ANSWERED = re.compile(r"answered (\S+) in [\d.]+ s, ([\d.]+) s of CPU")
_CONNECTED_SECONDS = 120
_REST_SECONDS = 20
_SAMPLE_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class PhoneClient(Benchmark):
    """Memory, CPU and time of phones as real processes behind a SuperLink with TLS, in one round without noise.

    `resident`: one process a phone, `fedcaptor phone run`; `supernode`: Flower's SuperNode, which starts a process for
    each message. The small CNN and embedded images. A resident phone records its images before the run begins; it is
    measured while it is awake and, once 20 seconds have passed without a message, at rest. Seconds depend on what else
    the machine does, CPU seconds less so.

    Example: python -m benchmarks phone_client --json benchmarks/results/phone_client.json
    """

    ways: Annotated[str, Option(help="resident, supernode.")] = "resident,supernode"
    phones: Annotated[str, Option(help="Numbers of resident phones.")] = "10"
    supernodes: Annotated[str, Option(help="Numbers of SuperNodes, each of which takes more of the machine.")] = "4"
    engines: Annotated[str, Option(help="What resident phones run networks with: torch, onnx.")] = "onnx"
    pace: Annotated[float, Option(min=0, help="delivery.answer_seconds of all phones."), SHARED] = 0.0

    def row_keys(self) -> list[Row]:
        return [
            {"way": way, "model": "small-cnn", "engine": engine, "phones": count}
            for way in self.ways.split(",")
            for count in numbers(self.phones if way == "resident" else self.supernodes)
            for engine in (self.engines.split(",") if way == "resident" else ["torch"])
        ]

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase) -> dict[str, Any]:
        """Return one row, from a deployment of its own that is taken down again."""
        with TemporaryDirectory(prefix="fedcaptor-phones-") as folder:
            fleet = Fleet(Path(folder))
            try:
                return _round(fleet, key["way"], key["engine"], key["phones"], self.pace)
            finally:
                fleet.stop()


def _round(fleet: Fleet, way: str, engine: str, phones: int, pace: float) -> dict[str, Any]:
    settings, port = small_run(phones, SETTINGS.format(pace=pace)), start_superlink(fleet)
    processes = []
    for number in range(phones):
        key = registered_key(fleet, f"node{number}")
        classes = (number % 10, (number + 3) % 10)
        file = write_phone(fleet.folder / f"phone{number}", port, key, classes, settings, engine)
        if way == "resident":
            file.write_text(f"{file.read_text()}rest_seconds = {_REST_SECONDS}\n")
        processes.append(psutil.Process(start_phone(fleet, way, file, number, port, key).pid))
    log = "connected as node" if way == "resident" else "SuperNode ID"
    _wait(lambda: sum(log in p.read_text() for p in fleet.folder.glob("phone-*.log")) == phones, fleet)
    time.sleep(10 if way == "resident" else 3)  # the images are recorded meanwhile
    awake = idle = [process.memory_info().rss for process in processes]
    if way == "resident":
        _wait(lambda: all("client.resting" in " ".join(process.cmdline()) for process in processes), fleet)
        idle = [process.memory_info().rss for process in processes]
    superlink = psutil.Process(fleet.started[0].pid)
    used = cpu_seconds(superlink)
    before = [cpu_seconds(process) for process in processes]
    with _Peaks(processes) as peaks:
        run = start_run(fleet, settings, phones)
        if run.wait(3600):
            raise StateError(f"the run failed: {fleet.logs()}")
    after = [cpu_seconds(process) for process in processes]
    journal = Journal(f"sqlite:///{fleet.folder / 'server' / 'state.db'}", _digest(fleet.folder))
    seconds = {name: passed for (round, name), passed in journal.seconds().items() if round == 1}
    journal.close()
    return {
        "idle_rss_bytes": float(np.mean(idle)),
        "awake_rss_bytes": float(np.mean(awake)),
        "peak_rss_bytes": float(max(peaks.largest.values())),
        "message_cpu_seconds": _by_kind(fleet.folder) if way == "resident" else {},
        "phone_cpu_seconds": float(np.mean(after) - np.mean(before)),
        "superlink_cpu_seconds": cpu_seconds(superlink) - used,
        "round_seconds": sum(seconds.values()),
        "phase_seconds": {name: round(passed, 2) for name, passed in seconds.items()},
    }


class _Peaks:
    """Sample the memory of processes and their children until the block ends; `largest`: by process, in bytes."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self._processes, self._over = processes, threading.Event()
        self.largest: dict[int, int] = defaultdict(int)

    def __enter__(self) -> _Peaks:
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            for process in self._processes:
                self.largest[process.pid] = max(self.largest[process.pid], _memory(process))


def _memory(process: psutil.Process) -> int:
    """Return the resident bytes of a process and its children, pages that they share counted for each."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.Error:
            continue
    return total


def _by_kind(folder: Path) -> dict[str, float]:
    """Return the mean CPU seconds of a resident phone's reply, by kind of message, from the phones' own logs."""
    found = defaultdict(list)
    for log in folder.glob("phone*/own/phone.log"):
        for kind, seconds in _ANSWERED.findall(log.read_text()):
            found[kind].append(float(seconds))
    return {kind: round(float(np.mean(values)), 4) for kind, values in sorted(found.items())}


def _digest(folder: Path) -> str:
    return str(json.loads((folder / "server" / "snapshot.json").read_text())["run"])


def _wait(holds: Any, fleet: Fleet) -> None:
    end = time.monotonic() + _CONNECTED_SECONDS
    while not holds():
        if time.monotonic() > end:
            raise StateError(f"not all phones are connected after {_CONNECTED_SECONDS} s: {fleet.logs()}")
        time.sleep(0.2)
