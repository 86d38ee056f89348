"""Newer software replaces older; a device that vanishes in any step is named, and the step goes on when it is back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from fedcaptor.deploy.android.bench import bench
from fedcaptor.deploy.android.bundle import Bundle
from fedcaptor.deploy.android.device import DeviceError
from tests.android.fleet import BUNDLE, Fleet

pytestmark = [pytest.mark.android, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def newer(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose program layer is another, but does the same: its archive has more zeros at its end."""
    program = fleet.bundle.layers[-1]
    content = fleet.bundle.archive(program).read_bytes() + bytes(10240)
    changed = replace(program, digest=hashlib.sha256(content).hexdigest(), size=len(content))
    made = Bundle(tmp_path_factory.mktemp("newer"), (*fleet.bundle.layers[:-1], changed))
    made.archive(changed).write_bytes(content)
    return made


def test_an_update_sends_what_changed_and_keeps_the_phone(running: Fleet, newer: Bundle) -> None:
    installation, key = running.installation(0), running.home(0) / "phone" / "node.key"
    before, ran = key.read_bytes(), installation.running
    (planned,) = running.say("update", "--cache", BUNDLE, "--dry-run", numbers=(0,))
    assert planned["plan"] == []
    assert installation.update(running.bundle, print) == 0
    assert installation.running == ran
    assert installation.update(newer, print) == newer.layers[-1].size
    status = installation.status(newer)
    assert status["current"]
    assert status["running"] not in (None, ran)
    assert key.read_bytes() == before
    (planned,) = running.say("update", "--cache", BUNDLE, "--dry-run", numbers=(0,))
    assert planned["plan"][-1] == f"stop process {status['running']} and start the new client"
    (done,) = running.say("update", "--cache", BUNDLE, numbers=(0,))
    assert done["sent"] == running.bundle.layers[-1].size


@pytest.mark.parametrize("step", ["check", "push", "enrol", "start", "status", "logs", "bench", "stop"])
def test_a_device_that_vanishes_is_said_to(step: str, installed: Fleet, tmp_path: Path) -> None:
    model = tmp_path / "same.onnx"
    model.write_bytes(_program_that_returns_its_input())
    installation, port = installed.installation(0), installed.deployment.settings.port
    calls: dict[str, Callable[[], object]] = {
        "check": lambda: installation.check(None),
        "push": lambda: installation.push(installed.bundle, print),
        "enrol": lambda: installation.enrol(installed.deployment),
        "start": lambda: installation.start(port),
        "status": installation.status,
        "logs": lambda: installation.logs(5),
        "bench": lambda: bench(installation, [model], print),
        "stop": installation.stop,
    }
    vanishes(installed, calls[step], 30)


def test_an_update_that_is_cut_again_and_again_is_the_old_or_the_new(running: Fleet, newer: Bundle) -> None:
    installation, piece = running.installation(0), 4 << 20
    for bundle in (newer, running.bundle):
        update = partial(installation.update, bundle, print)
        left = bundle.layers[-1].size - piece
        for cut in (300, 3000, piece + (1 << 20), left + 3000):  # before, within and after the layer
            vanishes(running, update, cut, again=False)
            assert installation.is_current(newer) or installation.is_current(running.bundle)
        update()
        assert installation.status(bundle)["current"]
        assert installation.running


def _program_that_returns_its_input() -> bytes:
    pixels, scores = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in ("pixels", "scores"))
    node = helper.make_node("Identity", ["pixels"], ["scores"])
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(
        helper.make_graph([node], "same", [pixels], [scores]), opset_imports=opset, ir_version=8
    ).SerializeToString()


def vanishes(fleet: Fleet, call: Callable[[], object], cut: int, again: bool = True) -> None:
    """The cable of the first device is cut after so many bytes of a step, which says so; then it is there `again`."""
    fleet.devices[0].cut_after = cut
    with pytest.raises(DeviceError, match=r"not connected|offline"):
        call()
    fleet.connect()
    if again:
        call()
