"""Devices are listed and checked, and get the client over a cable that is pulled meanwhile."""

from __future__ import annotations

import json
import re
import time

import pytest

from fedcaptor.deploy.android.install import HOME
from tests.android.fleet import BUNDLE, Fleet, fedcaptor

pytestmark = [pytest.mark.android, pytest.mark.timeout(1800)]

CUT = 20 << 20


def test_devices_are_listed_and_checked(fleet: Fleet) -> None:
    assert [one["state"] for one in json.loads(fedcaptor("devices", "list", "--json"))] == ["device", "device"]
    assert "2 devices are attached" in fedcaptor("devices", "check", code=2)
    for found in fleet.say("check"):
        assert found["told"]["architecture"] == "aarch64"
        assert found["told"]["resolver"] == ""
        assert not [one for one in found["findings"] if one["level"] == "error"]


def test_a_push_that_is_cut_goes_on(fleet: Fleet) -> None:
    one, home = fleet.devices[0], fleet.home(0)
    (planned,) = fleet.say("push", fleet.deployment.root, "--cache", BUNDLE, "--dry-run", numbers=(0,))
    assert [step.split()[:2] for step in planned["plan"][:3]] == [["send", f"{x.name},"] for x in fleet.bundle.layers]
    assert not home.exists()
    begun = time.monotonic()
    one.cut_after = CUT
    words = ["devices", "push", fleet.deployment.root, "--cache", BUNDLE, "-s", one.serial]
    said = fedcaptor(*words, code=1)
    assert re.search(rf"error: {re.escape(one.serial)} is (not connected|offline)", said), said
    assert not (home / "fedcaptor").exists()
    fleet.connect()
    (done,) = json.loads(fedcaptor(*words, "--json"))
    fleet.measured["push, cut once"] = time.monotonic() - begun
    assert fleet.bundle.size - CUT < done["sent"] < fleet.bundle.size
    assert done["name"] in fleet.deployment.enrolled_keys()
    for path in (home, *home.iterdir(), *(home / "layers").iterdir(), *(home / "phone").iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
    (again,) = json.loads(fedcaptor(*words, "--json"))
    assert (again["sent"], again["name"]) == (0, done["name"])  # its key is its identity


def test_the_client_uses_nothing_of_the_device(installed: Fleet) -> None:
    modules = (
        "fedcaptor.client.resident, fedcaptor.client.learner, fedcaptor.client.onnx_engine, fedcaptor.client.fetch"
    )
    code = f"import {modules}; print(open('/proc/self/maps').read())"
    maps = installed.installation(0).device.run(f'sh {HOME}/fedcaptor python -c "{code}"', 600)
    files = {line.split(None, 5)[5] for line in maps.splitlines() if len(line.split(None, 5)) == 6}
    assert not [file for file in files if file.startswith("/") and not file.startswith(f"{HOME}/layers/")]
    assert not (installed.home(0) / "phone" / ".cache").exists()  # as ONNX Runtime would report from
