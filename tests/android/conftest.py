"""Two emulated devices, in the state that a stage begins with, so that each stage can be run by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack

import adbutils
import pytest

from benchmarks.deployment import free_port
from fedcaptor.deploy.android.bundle import build
from fedcaptor.deploy.create import Wanted, create
from fedcaptor.deploy.phones import write_images
from fedcaptor.deploy.processes import down
from tests.android.emulated import device, make_root
from tests.android.fleet import BUNDLE, Fleet, fedcaptor
from tests.programs import program

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

_measured = pytest.StashKey[dict[str, float]]()


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Two attached devices with nothing on them, and a deployment that is up."""
    program("nginx")
    folder = tmp_path_factory.mktemp("fleet")
    bundle = build(BUNDLE, print)
    with ExitStack() as stack:
        devices = []
        for number in range(2):
            make_root(folder / f"device-{number}")
            devices.append(stack.enter_context(device(folder / f"device-{number}", 5601 + number)))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
        subprocess.run([adbutils.adb_path(), "start-server"], env=os.environ | {"HOME": str(folder)}, check=True)
        stack.callback(adbutils.AdbClient().server_kill)
        made = create(folder / "deployment", Wanted(2, port=free_port(), keys=False, overrides=SETTINGS))
        stack.callback(down, made, print)
        fedcaptor("deploy", "up", made.root)
        held = Fleet((devices[0], devices[1]), made, bundle)
        held.connect()
        request.config.stash[_measured] = held.measured
        yield held
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def installed(fleet: Fleet) -> Fleet:
    """The client is on both devices, which are enrolled. Layers that no test pushed are unpacked from this side."""
    fleet.connect()
    for number, classes in enumerate(OWNERS):
        for layer in fleet.bundle.layers:
            target = fleet.home(number) / "layers" / layer.folder
            if not target.exists():
                with tarfile.open(fleet.bundle.archive(layer)) as archive:
                    archive.extractall(target, filter="tar")
        images = fleet.home(number) / "phone" / "images"
        shutil.rmtree(images, ignore_errors=True)
        write_images(images, classes, 10)
    fleet.say("push", fleet.deployment.root, "--cache", BUNDLE)
    return fleet


@pytest.fixture
def running(installed: Fleet) -> Fleet:
    """The client runs on both devices."""
    installed.connect()
    installed.say("start", installed.deployment.root)
    return installed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, seconds in config.stash.get(_measured, {}).items():
        terminalreporter.write_line(f"{name}: {seconds:.0f} s")
