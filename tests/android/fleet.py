"""Two emulated devices on adb and the deployment that they belong to, and what tests do with them."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import adbutils

from benchmarks.deployment import free_port
from fedcaptor.common.config import DeploymentSettings
from fedcaptor.deploy.android import adb
from fedcaptor.deploy.android.bundle import Bundle, build
from fedcaptor.deploy.android.install import HOME, Installation
from fedcaptor.deploy.create import Wanted, create
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.processes import down
from fedcaptor.deploy.programs import ours
from fedcaptor.deploy.runs import last_snapshot
from tests.android.emulated import CACHE, Emulated, device, make_root

BUNDLE = CACHE / "bundle"
SETTINGS = (  # two phones cannot hide one another, and emulated arithmetic is a hundred times as slow
    "privacy.noise=false",
    "privacy.corrupted=0.0",
    "privacy.dropout=0.0",
    "privacy.min_cohort=2",
    "testing.small_cohorts=true",
    "delivery.answer_seconds=15.0",
    "rounds.deadline=1200.0",
    "rounds.grace=60.0",
    "clusters.iterations=1",
    "visualise.steps=2",
    "scores.images=8",
    "device.poll_seconds=1.0",
    "device.condition_seconds=5.0",
    "personal.ladder=[0.5]",
    "personal.reference=6",
    "personal.images=32",
    "personal.rows=128",
    "personal.tolerance=0.2",  # so few images show no smaller loss
)
OWNERS = ((0, 1), (2, 3))
"""The classes that each phone's owner meets."""


@dataclass
class Fleet:
    """`measured`: seconds of what was timed, which the summary of the tests shows."""

    devices: tuple[Emulated, Emulated]
    deployment: Deployment
    bundle: Bundle
    measured: dict[str, float] = field(default_factory=dict)

    def installation(self, number: int) -> Installation:
        return Installation(adb.AdbDevice(self.devices[number].serial))

    def home(self, number: int) -> Path:
        """The installation's folder, seen from this side."""
        return self.devices[number].root / HOME[1:]

    def connect(self) -> None:
        for one in self.devices:
            one.plug()
            adbutils.AdbClient().connect(one.serial)
        until(lambda: [one.state for one in adb.attached()] == ["device"] * 2)

    def lay(self, number: int) -> None:
        """Unpack the layers that a device lacks, from this side: spares minutes of emulation."""
        for layer in self.bundle.layers:
            target = self.home(number) / "layers" / layer.folder
            if not target.exists():
                with tarfile.open(self.bundle.archive(layer)) as archive:
                    archive.extractall(target, filter="tar")

    def say(self, name: str, *words: object, numbers: tuple[int, ...] = (0, 1)) -> list[dict]:
        """What `fedcaptor devices NAME` says of these devices, as JSON."""
        serials = [word for number in numbers for word in ("-s", self.devices[number].serial)]
        return json.loads(fedcaptor("devices", name, *words, *serials, "--json"))


@contextmanager
def attached_fleet(folder: Path, settings: Sequence[str]) -> Iterator[Fleet]:
    """Two attached devices with nothing on them, and a deployment of these settings that is up, all in a folder."""
    bundle = build(BUNDLE, print)
    with ExitStack() as stack:
        devices = []
        for number in range(2):
            make_root(folder / f"device-{number}")
            devices.append(stack.enter_context(device(folder / f"device-{number}", 5601 + number)))
        os.environ["ANDROID_ADB_SERVER_PORT"] = str(free_port())  # for adbutils, adb and commands
        stack.callback(os.environ.pop, "ANDROID_ADB_SERVER_PORT")
        subprocess.run([adbutils.adb_path(), "start-server"], env=os.environ | {"HOME": str(folder)}, check=True)
        stack.callback(adbutils.AdbClient().server_kill)
        ports = [
            f"deployment.{name}={free_port()}" for name in DeploymentSettings.model_fields if name.endswith("_port")
        ]
        wanted = Wanted(2, port=free_port(), keys=False, overrides=(*settings, *ports))
        made = create(folder / "deployment", wanted)
        stack.callback(down, made, print)
        fedcaptor("deploy", "up", made.root)
        held = Fleet((devices[0], devices[1]), made, bundle)
        held.connect()
        yield held


def fedcaptor(*words: object, code: int = 0) -> str:
    """What the command says; it must end with `code`."""
    found = subprocess.run([ours("fedcaptor"), *map(str, words)], capture_output=True, text=True, check=False)
    assert found.returncode == code, found.stdout + found.stderr
    return found.stdout if code == 0 else found.stderr


@contextmanager
def run_of(fleet: Fleet, name: str) -> Iterator[subprocess.Popen[str]]:
    """A run of the deployment that waits for its phones."""
    words = [ours("fedcaptor"), "deploy", "run", fleet.deployment.root, "--name", name]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        yield run


def first_reply(fleet: Fleet, name: str, run: subprocess.Popen[str]) -> None:
    """Wait until the server has a phone's reply to a step of a masked sum, or the run ended."""

    def seen() -> bool:
        now = last_snapshot(fleet.deployment.runs / name)
        return now is not None and now.present is not None and bool(now.present.step) and now.present.replied > 0

    until(lambda: run.poll() is not None or seen(), 1800)


def until(holds: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until something holds; the bound is for what never will."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "this did not come to hold"
        time.sleep(0.2)
