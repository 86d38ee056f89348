"""A whole round over two cables, from a client that does not run to the submodel of each phone."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from tests.android.fleet import BUNDLE, OWNERS, Fleet, first_reply, run_of, until

pytestmark = [pytest.mark.android, pytest.mark.timeout(3600)]


def test_a_round(installed: Fleet) -> None:
    root, port = installed.deployment.root, installed.deployment.settings.port
    for found in installed.say("start", root, "--dry-run"):
        assert found["plan"] == [f"lead its port {port} here", "start the client"]
    with run_of(installed, "first") as run:
        begun = time.monotonic()
        assert all(found["said"].startswith("started as") for found in installed.say("start", root))
        first_reply(installed, "first", run)
        installed.measured["start to the first masked reply at the server"] = time.monotonic() - begun
        said, _ = run.communicate()
    logs = {found["serial"]: found["log"] for found in installed.say("logs", "-n", 500)}
    assert run.returncode == 0, "\n\n".join([said, *logs.values()])
    assert all("connected as node" in log and "answered query.deliver" in log for log in logs.values())
    for found in installed.say("status", "--cache", BUNDLE):
        assert (found["current"], found["restarts"], found["ports"]) == (True, 0, [port])
        assert found["running"]


def test_each_phone_makes_its_own_submodel(running: Fleet) -> None:
    begun = time.monotonic()
    own = [running.home(number) / "phone" / "own" for number in range(2)]
    until(lambda: all((folder / "outcome.json").exists() for folder in own), 1800)
    running.measured["wait for both submodels, after the round"] = time.monotonic() - begun
    for number, folder in enumerate(own):
        note = json.loads((folder / "outcome.json").read_text())
        assert note["kind"] in ("personal", "cluster")
        assert set(OWNERS[number]) <= set(note["classes"])
        program = (folder / note["file"]).read_bytes()
        assert hashlib.sha256(program).hexdigest() == note["digest"]
        assert len(program) < 0.75 * installed_bytes(running, number)
        answers = _answers(program, note, (folder.parent / "images").iterdir())
        assert np.isin(answers, OWNERS[number]).mean() > 0.7
    (measured,) = running.say("bench", "--own", numbers=(0,))
    assert [row["model"] for row in measured["rows"]] == ["its own submodel"]


def installed_bytes(fleet: Fleet, number: int) -> int:
    """The size of the full model's weights, which are in half precision too, on a phone."""
    return (fleet.home(number) / "phone" / "base.safetensors").stat().st_size


def _answers(program: bytes, note: dict, images: Iterable[Path]) -> np.ndarray:
    """What an app on this machine makes of the phone's images with its submodel."""
    pixels = np.stack([np.asarray(Image.open(path), np.float32)[None] / 255 for path in images])
    (scores,) = onnxruntime.InferenceSession(program).run(["scores"], {"pixels": pixels})
    outputs = np.array(note["outputs"])
    scores = scores + np.log(np.array(note["prior"])[outputs])
    own = np.isin(outputs, note["classes"])
    return outputs[own][scores[:, own].argmax(1)]
