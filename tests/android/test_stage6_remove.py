"""Nothing stays on a device that is removed, and a full one keeps what it has."""

from __future__ import annotations

import shutil
from pathlib import Path

import adbutils
import pytest

from fedcaptor.deploy.android import adb
from fedcaptor.deploy.android.device import DeviceError
from fedcaptor.deploy.android.install import HOME, Installation
from tests.android.emulated import device, make_root
from tests.android.fleet import BUNDLE, Fleet, until

pytestmark = [pytest.mark.android, pytest.mark.timeout(1800)]


def test_a_full_device_keeps_what_it_has(fleet: Fleet, tmp_path: Path) -> None:
    make_root(tmp_path / "full")
    with device(tmp_path / "full", 5603, "300m") as emulated:
        adbutils.AdbClient().connect(emulated.serial)
        until(lambda: adb.Attached(emulated.serial, "device") in adb.attached())
        installation = Installation(adb.AdbDevice(emulated.serial))
        with pytest.raises(DeviceError, match=r"space: 300 MiB free, \d+ needed, make \d+ MiB of room"):
            installation.push(fleet.bundle, print)
        with pytest.raises(DeviceError, match="is full: make room"):
            installation.device.run("cat /dev/zero > /data/local/tmp/filler")
        with pytest.raises(DeviceError, match="is full: make room"):
            installation.device.send(bytes(1 << 20), "/data/local/tmp/more")
        installation.device.run("rm /data/local/tmp/filler")
        assert not installation.device.run(f"ls {HOME} 2>/dev/null || true")


def test_one_command_enrols_brings_images_and_starts(installed: Fleet) -> None:
    images = installed.home(1) / "phone" / "images"
    installed.say("stop", numbers=(1,))
    assert installed.say("stop", "--dry-run", numbers=(1,))[0]["plan"] == []
    shutil.rmtree(images)
    push = ("push", installed.deployment.root, "--cache", BUNDLE, "--demo", "--start")
    (done,) = installed.say(*push, numbers=(1,))
    assert "; started as " in done["said"]
    assert len(list(images.iterdir())) in (80, 120)  # of two or of three classes
    (planned,) = installed.say(*push, "--dry-run", numbers=(1,))
    assert planned["plan"] == [f"bring the files of {done['name']}"]


def test_removal_goes_on_after_a_cut_and_leaves_nothing(running: Fleet) -> None:
    root, port = running.deployment.root, running.deployment.settings.port
    names = running.deployment.enrolled_keys()
    planned = running.say("remove", root, "--dry-run")
    assert {one["plan"][2].split()[1] for one in planned} == set(names)
    for found in planned:
        assert found["plan"][0].startswith("stop process ")
        assert (found["plan"][1], found["plan"][-1]) == (f"no longer lead its port {port} here", f"delete {HOME}")
    running.devices[0].cut_after = 300
    with pytest.raises(DeviceError, match=r"not connected|offline"):
        running.installation(0).remove(running.deployment)
    running.connect()
    running.say("remove", root, "--yes")
    assert running.deployment.enrolled_keys() == {}
    for number in range(2):
        assert not running.home(number).exists()
        device = running.installation(number).device
        assert device.reversed() == set()
        left = (
            "for p in /proc/[0-9]*; do ! grep -q fedcapto[r] $p/cmdline || tr '\\0' ' ' < $p/cmdline; done 2>/dev/null"
        )
        assert device.run(left) == ""  # the brackets keep this command out of what it finds
    assert all(found["plan"] == [] for found in running.say("remove", root, "--dry-run"))
