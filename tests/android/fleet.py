"""Two emulated devices on adb and the deployment that they belong to, and what tests do with them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import adbutils

from fedcaptor.deploy.android import adb
from fedcaptor.deploy.android.bundle import Bundle
from fedcaptor.deploy.android.install import HOME, Installation
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.programs import ours
from tests.android.emulated import CACHE, Emulated

BUNDLE = CACHE / "bundle"


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

    def say(self, name: str, *words: object, numbers: tuple[int, ...] = (0, 1)) -> list[dict]:
        """What `fedcaptor devices NAME` says of these devices, as JSON."""
        serials = [word for number in numbers for word in ("-s", self.devices[number].serial)]
        return json.loads(fedcaptor("devices", name, *words, *serials, "--json"))


def fedcaptor(*words: object, code: int = 0) -> str:
    """What the command says; it must end with `code`."""
    found = subprocess.run([ours("fedcaptor"), *map(str, words)], capture_output=True, text=True, check=False)
    assert found.returncode == code, found.stdout + found.stderr
    return found.stdout if code == 0 else found.stderr


def until(holds: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until something holds; the bound is for what never will."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "this did not come to hold"
        time.sleep(0.2)
