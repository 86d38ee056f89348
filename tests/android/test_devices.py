"""From a cable to a private contribution: two emulated devices, adb, a deployment with its front, and a whole round."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import adbutils
import pytest

from benchmarks.deployment import free_port
from fedcaptor.deploy.android import adb
from fedcaptor.deploy.android.bundle import Bundle, build
from fedcaptor.deploy.android.device import DeviceError
from fedcaptor.deploy.android.install import HOME, Installation
from fedcaptor.deploy.create import Wanted, create
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.phones import write_images
from fedcaptor.deploy.processes import down
from fedcaptor.deploy.programs import ours
from tests.android.emulated import CACHE, Emulated, device, make_root
from tests.programs import program

pytestmark = [pytest.mark.android, pytest.mark.timeout(3600)]

CUT = 20 << 20
SETTINGS = (  # two phones cannot hide one another, and an emulated one is slow
    "privacy.noise=false",
    "privacy.corrupted=0.0",
    "privacy.dropout=0.0",
    "privacy.min_cohort=2",
    "testing.small_cohorts=true",
    "delivery.answer_seconds=15.0",
    "rounds.deadline=1200.0",
    "rounds.grace=60.0",
    "visualise.steps=2",
    "device.poll_seconds=1.0",
    "device.condition_seconds=5.0",
    "personal.ladder=[0.5]",
)


@dataclass
class Fleet:
    devices: tuple[Emulated, Emulated]
    deployment: Deployment
    bundle: Bundle

    def installation(self, number: int) -> Installation:
        return Installation(adb.AdbDevice(self.devices[number].serial))

    def connect(self) -> None:
        for one in self.devices:
            one.plug()
            adbutils.AdbClient().connect(one.serial)
        until(lambda: [one.state for one in adb.attached()] == ["device"] * 2, 60)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    program("nginx")
    folder = tmp_path_factory.mktemp("fleet")
    bundle = build(CACHE / "bundle", print)
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
        until(lambda: all((one.root / "cable").exists() for one in devices), 60)
        held.connect()
        yield held
        shutil.rmtree(folder, ignore_errors=True)


def fedcaptor(*words: object, code: int = 0) -> str:
    """What the command says; it must end with `code`."""
    found = subprocess.run([ours("fedcaptor"), *map(str, words)], capture_output=True, text=True, check=False)
    assert found.returncode == code, found.stdout + found.stderr
    return found.stdout if code == 0 else found.stderr


def until(holds, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


def both(fleet: Fleet) -> list[str]:
    return [word for one in fleet.devices for word in ("-s", one.serial)]


def devices(fleet: Fleet, name: str, *more: object) -> list[dict]:
    """What `fedcaptor devices NAME` says of both, as JSON."""
    return json.loads(fedcaptor("devices", name, *more, *both(fleet), "--json"))


def test_devices_are_listed_and_checked(fleet: Fleet) -> None:
    assert [one["state"] for one in json.loads(fedcaptor("devices", "list", "--json"))] == ["device", "device"]
    assert "2 devices are attached" in fedcaptor("devices", "check", code=2)
    for found in devices(fleet, "check"):
        assert found["told"]["architecture"] == "aarch64"
        assert found["told"]["resolver"] == ""
        assert not [one for one in found["findings"] if one["level"] == "error"]


def test_a_push_that_is_cut_goes_on(fleet: Fleet) -> None:
    one, other = fleet.devices
    one.cut_after = CUT
    words = ["devices", "push", fleet.deployment.root, "--cache", CACHE / "bundle", "-s", one.serial]
    said = fedcaptor(*words, code=1)
    assert re.search(rf"error: {re.escape(one.serial)} is (not connected|offline)", said), said
    assert not (one.root / HOME[1:] / "fedcaptor").exists()
    fleet.connect()
    (done,) = json.loads(fedcaptor(*words, "--json"))
    assert fleet.bundle.size - CUT < done["sent"] < fleet.bundle.size
    (again,) = json.loads(fedcaptor(*words, "--json"))
    assert (again["sent"], again["name"]) == (0, done["name"])  # its key is its identity
    shutil.copytree(one.root / HOME[1:] / "layers", other.root / HOME[1:] / "layers")  # spares minutes of emulation
    names = [found["name"] for found in devices(fleet, "push", fleet.deployment.root, "--cache", CACHE / "bundle")]
    assert sorted(names) == sorted(fleet.deployment.enrolled_keys())
    for emulated in fleet.devices:
        home = emulated.root / HOME[1:]
        for path in (home, *home.iterdir(), *(home / "layers").iterdir(), *(home / "phone").iterdir()):
            assert path.stat().st_mode & 0o077 == 0, path


def test_the_client_uses_nothing_of_the_device(fleet: Fleet) -> None:
    modules = (
        "fedcaptor.client.resident, fedcaptor.client.learner, fedcaptor.client.onnx_engine, fedcaptor.client.fetch"
    )
    code = f"import {modules}; print(open('/proc/self/maps').read())"
    maps = fleet.installation(0).device.run(f'sh {HOME}/fedcaptor python -c "{code}"', 600)
    files = {line.split(None, 5)[5] for line in maps.splitlines() if len(line.split(None, 5)) == 6}
    assert not [file for file in files if file.startswith("/") and not file.startswith(f"{HOME}/layers/")]
    assert not (fleet.devices[0].root / HOME[1:] / "phone" / ".cache").exists()  # as ONNX Runtime would report from


def test_a_round(fleet: Fleet) -> None:
    for number, emulated in enumerate(fleet.devices):
        images = emulated.root / HOME[1:] / "phone" / "images"
        shutil.rmtree(images)
        write_images(images, (2 * number, 2 * number + 1), 20)
    assert all(found["said"].startswith("started as") for found in devices(fleet, "start", fleet.deployment.root))
    try:
        fedcaptor("deploy", "run", fleet.deployment.root)
    except AssertionError:
        print(*(fleet.installation(number).logs(60) for number in range(2)), sep="\n\n")
        raise
    for found in devices(fleet, "status", "--cache", CACHE / "bundle"):
        assert found["current"]
        assert found["running"]
        assert found["restarts"] == 0
        assert found["ports"] == [fleet.deployment.settings.port]
    # What a phone makes of the delivery is not waited for: emulated, its arithmetic takes a hundred times as long.
    for found in devices(fleet, "logs", "-n", 500):
        assert "connected as node" in found["log"]
        assert "answered query.deliver" in found["log"]


def test_a_client_that_dies_comes_back(fleet: Fleet) -> None:
    installation = fleet.installation(0)
    client = (
        r"for p in /proc/[0-9]*; do grep -q 'phone.run.--config' $p/cmdline 2>/dev/null && kill -9 ${p#/proc/}; done"
    )
    installation.device.run(f"{client}; true")
    until(lambda: installation.status()["restarts"] == 1, 60)
    assert installation.status()["running"]


def test_a_phone_off_its_charger_stays_away(fleet: Fleet) -> None:
    condition = f"sh {HOME}/fedcaptor condition charging level=30"
    run = fleet.installation(1).device.run
    assert run(f"{condition}; echo $?").strip() == "0"
    (fleet.devices[1].battery / "status").write_text("Discharging\n")
    assert run(f"{condition} 2>&1; echo $?").split("\n")[:2] == ["battery is Discharging, not charging", "1"]


def test_models_are_measured(fleet: Fleet) -> None:
    model = CACHE / "small.onnx"
    fedcaptor("prune", "small-cnn", "--weights", fleet.deployment.weights, "--classes", "0,1", "--out", model)
    words = ["devices", "bench", model, "-s", fleet.devices[0].serial]
    if "measure.py" not in {path.name for path in Path(adb.__file__).parents[2].joinpath("client").iterdir()}:
        assert "the installed client cannot measure" in fedcaptor(*words, code=1)
        return
    (found,) = json.loads(fedcaptor(*words, "--json"))
    assert found["rows"][0]["latency_ms_median"] > 0


def test_an_update_sends_what_changed_and_keeps_the_phone(fleet: Fleet, tmp_path: Path) -> None:
    installation, key = fleet.installation(0), fleet.devices[0].root / HOME[1:] / "phone" / "node.key"
    before, ran = key.read_bytes(), installation.status()["running"]
    assert installation.update(fleet.bundle, print) == 0
    program = fleet.bundle.layers[-1]
    content = fleet.bundle.archive(program).read_bytes() + bytes(10240)  # more zeros at its end: another digest
    changed = replace(program, digest=hashlib.sha256(content).hexdigest(), size=len(content))
    newer = Bundle(tmp_path, (*fleet.bundle.layers[:-1], changed))
    newer.archive(changed).write_bytes(content)
    assert installation.update(newer, print) == len(content)
    status = installation.status(newer)
    assert status["current"]
    assert status["running"] not in (None, ran)
    assert key.read_bytes() == before
    assert installation.update(fleet.bundle, print) == program.size


@pytest.mark.parametrize("step", ["check", "push", "enrol", "start", "status", "logs", "update", "stop", "remove"])
def test_a_device_that_vanishes_is_said_to(step: str, fleet: Fleet) -> None:
    fleet.connect()
    installation, emulated = fleet.installation(0), fleet.devices[0]
    calls = {
        "check": lambda: installation.check(None),
        "push": lambda: installation.push(fleet.bundle, print),
        "enrol": lambda: installation.enrol(fleet.deployment),
        "start": lambda: installation.start(fleet.deployment.settings.port),
        "status": lambda: installation.status(),
        "logs": lambda: installation.logs(5),
        "update": lambda: installation.update(fleet.bundle, print),
        "stop": lambda: installation.stop(),
        "remove": lambda: installation.remove(fleet.deployment),
    }
    emulated.cut_after = 30
    with pytest.raises(DeviceError, match=r"not connected|offline"):
        calls[step]()
    fleet.connect()
    calls[step]()


def test_both_are_removed(fleet: Fleet) -> None:
    fleet.connect()
    devices(fleet, "remove", fleet.deployment.root, "--yes")
    assert fleet.deployment.enrolled_keys() == {}
    assert not any((one.root / HOME[1:]).exists() for one in fleet.devices)


def test_a_full_device_keeps_what_it_has(fleet: Fleet, tmp_path: Path) -> None:
    make_root(tmp_path / "full")
    with device(tmp_path / "full", 5603, "300m") as emulated:
        until((tmp_path / "full" / "cable").exists, 60)
        adbutils.AdbClient().connect(emulated.serial)
        until(lambda: adb.Attached(emulated.serial, "device") in adb.attached(), 60)
        installation = Installation(adb.AdbDevice(emulated.serial))
        with pytest.raises(DeviceError, match=r"space: 300 MiB free, \d+ needed, make \d+ MiB of room"):
            installation.push(fleet.bundle, print)
        with pytest.raises(DeviceError, match="is full: make room"):
            installation.device.run("cat /dev/zero > /data/local/tmp/filler")
        with pytest.raises(DeviceError, match="is full: make room"):
            installation.device.send(bytes(1 << 20), "/data/local/tmp/more")
