"""Whether a deployment survives: processes killed at random, connections cut and a full disk, while runs go on."""

from __future__ import annotations

import hashlib
import random
import subprocess
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import onnxruntime
import psutil
from typer import Option

from benchmarks.command import SHARED, Benchmark
from benchmarks.deployment import free_port
from benchmarks.progress import OnPhase
from benchmarks.record import Row
from fedcaptor.client.folder import open_ledger
from fedcaptor.client.outcome import Outcome
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import FedcaptorError
from fedcaptor.deploy.create import Wanted, create
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.processes import down, processes_of, status, up
from fedcaptor.deploy.runs import last_snapshot, next_name, run
from fedcaptor.server.journal import Journal

SETTINGS = ("personal.ladder=[0.3,0.5,0.8]", "deployment.restarts=50", "rounds.deadline=180", "rounds.attempts=5")
_RECOVER_SECONDS = 120.0
_DISK_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True)
class Chaos(Benchmark):
    """A deployment on this machine with phones behind its front, and something that breaks every few seconds.

    A service, the run's own process or a phone is killed with SIGKILL, all connections at the front are cut, or the
    disk is full for some seconds (Linux, as root: the folder is then a file system of its own). Runs follow one another
    meanwhile. Afterwards phones' submodels and ledgers and the runs' journals are held against what should be there.

    Example: python -m benchmarks chaos --minutes 5 --json benchmarks/results/chaos.json
    """

    phones: Annotated[int, Option(min=5, help="Phones on this machine.")] = 10
    minutes: Annotated[float, Option(min=0.1, help="How long things break.")] = 5.0
    pause: Annotated[float, Option(min=0.5, help="Mean seconds between two breaks."), SHARED] = 8.0
    seed: Annotated[int, Option(help="Of the choice of what breaks.")] = 0

    def row_keys(self) -> list[Row]:
        return [{"phones": self.phones, "minutes": self.minutes, "seed": self.seed}]

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase) -> dict[str, Any]:
        """Return one row, from a deployment of its own that is taken down again."""
        with TemporaryDirectory(prefix="fedcaptor-chaos-") as folder, _own_disk(Path(folder)) as full_disk:
            made = create(Path(folder) / "own", Wanted(key["phones"], port=free_port(), demo=True, overrides=SETTINGS))
            try:
                up(made, lambda text: None)
                return _survived(made, key, self.pause, full_disk, on_phase)
            finally:
                down(made, lambda text: None)


def _survived(
    deployment: Deployment, key: Mapping[str, Any], pause: float, full_disk: bool, on_phase: OnPhase
) -> dict[str, Any]:
    breaker = _Breaker(deployment, random.Random(key["seed"]), pause, full_disk)
    end = time.monotonic() + 60 * key["minutes"]
    breaker.start()
    failures: list[str] = []
    names: list[str] = []
    while time.monotonic() < end:
        on_phase("runs", len(names), len(names) + 1)
        name = next_name(deployment)
        threading.Timer(max(0.0, end - time.monotonic()), breaker.stop).start()
        try:
            run(deployment, name, lambda text: None)
        except FedcaptorError as error:
            failures.append(f"{name}: {error}"[:300])
        names = sorted({*names, name})
    breaker.stop()
    breaker.join()
    return {
        "breaks": dict(breaker.count),
        "recovery_seconds": {
            name: {"median": round(float(np.median(passed)), 2), "max": round(max(passed), 2)}
            for name, passed in sorted(breaker.recovered.items())
        },
        "not_recovered": breaker.lost,
        "full_disk": "run" if full_disk else "not run: no file system can be mounted here",
        "interrupted_runs": failures,
        **_finished(deployment, names),
        **_phones(deployment, names),
    }


class _Breaker(threading.Thread):
    """Break something again and again until `stop`; `recovered` has seconds until each was well again, by its name."""

    def __init__(self, deployment: Deployment, draw: random.Random, pause: float, full_disk: bool) -> None:
        super().__init__(daemon=True)
        self._deployment, self._draw, self._pause, self._over = deployment, draw, pause, threading.Event()
        self._kinds = ["service"] * 4 + ["run"] * 2 + ["phone"] * 3 + ["cut"] * 2 + ["disk"] * full_disk
        self.count: Counter[str] = Counter()
        self.recovered: dict[str, list[float]] = defaultdict(list)
        self.lost: list[str] = []

    def stop(self) -> None:
        self._over.set()

    def run(self) -> None:
        while not self._over.wait(self._draw.expovariate(1 / self._pause)):
            kind = self._draw.choice(self._kinds)
            with suppress(psutil.Error, OSError):
                getattr(self, f"_{kind}")()

    def _service(self) -> None:
        self._kill([s.name for s in status(self._deployment) if s.state == "running" and "phone" not in s.name])

    def _phone(self) -> None:
        self._kill([s.name for s in status(self._deployment) if s.state == "running" and "phone" in s.name])

    def _kill(self, names: list[str]) -> None:
        if not names:
            return
        name = self._draw.choice(names)
        pid = next(service.pid for service in status(self._deployment) if service.name == name)
        psutil.Process(pid).kill()
        kind = "phone" if name.startswith("phone") else name
        self.count[kind] += 1
        self._await(kind, name, pid)

    def _run(self) -> None:
        """Kill the process of the run itself, SuperLink's child."""
        found = [p for p in processes_of(self._deployment) if any("flwr-serverapp" in word for word in p.cmdline())]
        if found:
            found[0].kill()
            self.count["run's process"] += 1

    def _cut(self) -> None:
        """Cut all connections of phones: the front's workers are killed, its master starts others."""
        front = next(service for service in status(self._deployment) if service.name == "front")
        for worker in psutil.Process(front.pid).children():
            worker.kill()
        self.count["connections"] += 1

    def _disk(self) -> None:
        """Fill the disk for a few seconds."""
        ballast = self._deployment.root / "ballast"
        subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=1M"], capture_output=True)
        self.count["full disk"] += 1
        self._over.wait(self._draw.uniform(2, 6))
        ballast.unlink()

    def _await(self, kind: str, name: str, killed: int) -> None:
        begun = time.monotonic()
        while time.monotonic() - begun < _RECOVER_SECONDS:
            found = next(service for service in status(self._deployment) if service.name == name)
            if found.state == "running" and found.pid != killed:
                self.recovered[kind].append(time.monotonic() - begun)
                return
            time.sleep(0.1)
        self.lost.append(name)


def _finished(deployment: Deployment, names: list[str]) -> dict[str, Any]:
    """Hold every run's journal against its snapshot: rounds finished, and runs that did not end."""
    ended, rounds, unfinished = 0, 0, []
    for name in names:
        last = last_snapshot(deployment.runs / name)
        if last is None or last.status != "ended":
            unfinished.append(name)
            continue
        ended, rounds = ended + 1, rounds + last.finished
    return {"runs_ended": ended, "rounds_finished": rounds, "runs_lost": unfinished}


def _phones(deployment: Deployment, names: list[str]) -> dict[str, Any]:
    """Hold every phone's submodel against its note, and its charges against the sums that the server asked for."""
    asked: Counter[str] = Counter()
    for name in names:
        last = last_snapshot(deployment.runs / name)
        if last is None:
            continue
        journal = Journal(f"sqlite:///{deployment.runs / name / 'state.db'}", last.run)
        for _, phase in journal.seconds():
            asked[phase.rpartition("-")[0]] += 1
        asked.update({"in vain": len(journal.in_vain())})
        journal.close()
    delivered, missing, wrong, twice = 0, [], [], []
    for folder in deployment.phone_folders():
        own = folder / "own"
        try:
            note = Outcome.read(own)
            if note is None:
                missing.append(folder.name)
            elif note.file is not None:
                content = (own / note.file).read_bytes()
                same = hashlib.sha256(content).hexdigest() == note.digest
                onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])  # raises what it likes
                delivered += same
                wrong += [folder.name] * (not same)
        except Exception as error:
            wrong.append(f"{folder.name}: {error}"[:200])
        with open_ledger(own, load_config(folder / "phone.toml").privacy) as ledger:
            charges = Counter(charge.kind for charge in ledger.entries())
        if any(count > asked[kind] + asked["in vain"] for kind, count in charges.items()):
            twice.append(folder.name)
    return {
        "submodels_delivered": delivered,
        "phones_without_outcome": missing,
        "wrong_submodels": wrong,
        "phones_charged_too_often": twice,
    }


@contextmanager
def _own_disk(folder: Path) -> Iterator[bool]:
    """Make the folder a small file system that can be filled; False where that is not allowed."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", folder], capture_output=True
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", folder], capture_output=True)
