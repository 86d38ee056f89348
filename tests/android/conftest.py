"""Two emulated devices, in the state that a stage begins with, so that each stage can be run by itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from fedcaptor.deploy.phones import write_images
from tests.android.fleet import BUNDLE, OWNERS, SETTINGS, Fleet, attached_fleet
from tests.programs import program

_measured = pytest.StashKey[dict[str, float]]()


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Two attached devices with nothing on them, and a deployment that is up."""
    program("nginx")
    folder = tmp_path_factory.mktemp("fleet")
    with attached_fleet(folder, SETTINGS) as held:
        request.config.stash[_measured] = held.measured
        yield held
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def installed(fleet: Fleet) -> Fleet:
    """The client is on both devices, which are enrolled and have images. What no test pushed is laid there."""
    fleet.connect()
    for number, classes in enumerate(OWNERS):
        fleet.lay(number)
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
