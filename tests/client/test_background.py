"""A device's own work in a real child process: one at a time, and none is left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedcaptor.client import background
from fedcaptor.client.background import InChildProcess
from fedcaptor.client.device import Device, today
from fedcaptor.client.folder import DATABASE, SCORES_FILE, WORK_LOCK, WORK_LOG, erase
from fedcaptor.client.process_lock import acquire
from fedcaptor.client.usage import last_day_of
from tests import tiny


@pytest.fixture
def device(tmp_path: Path) -> Device:
    _, weights = tiny.write(tmp_path / "world", 600, 1)
    (tmp_path / "photos").mkdir()
    for n, image in enumerate(tiny.images(6, 1)[0]):
        Image.fromarray(np.asarray(image[..., 0])).save(tmp_path / "photos" / f"{n}.png")
    (tmp_path / "phone.toml").write_text("")
    paths = {"folder": "own", "images": "photos", "weights": f"world/{weights.name}", "config": "phone.toml"}
    node = {key: str(tmp_path / name) for key, name in paths.items()}
    return Device.of({**node, "model": tiny.MODEL, "input-shape": f"1x{tiny.SIDE}x{tiny.SIDE}"})


@pytest.mark.slow
def test_images_are_recorded_and_scored_by_a_child(device: Device, tmp_path: Path) -> None:
    work = device.phone().background
    assert isinstance(work, InChildProcess)
    work.prepare("scores")
    child = work._child
    work.prepare("scores")  # it is at work already
    assert work._child is child is not None
    work.wait(120)
    assert child.wait(10) == 0
    own = tmp_path / "own"
    assert (own / WORK_LOG).read_text() == ""
    assert last_day_of(own / DATABASE) == today()
    assert (own / SCORES_FILE).stat().st_mode & 0o777 == 0o600
    work.prepare("scores")  # nothing is due
    assert work._child is child
    assert {SCORES_FILE, WORK_LOG} <= set(erase(own, device.config.privacy))


@pytest.mark.slow
def test_why_it_failed_is_in_the_owners_log_alone(
    device: Device, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for file in (tmp_path / "photos").iterdir():
        file.unlink()
    work = device.phone().background
    assert work is not None
    work.prepare("usage")
    work.wait(120)
    assert "has no images" in (tmp_path / "own" / WORK_LOG).read_text()
    assert (tmp_path / "own" / WORK_LOG).stat().st_mode & 0o777 == 0o600
    assert capfd.readouterr() == ("", "")


def test_a_killed_child_leaves_the_way_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "__name__", "tests.client.sleeping")
    work = InChildProcess(tmp_path, {}, lambda kind: True)
    work.prepare("usage")
    child = work._child
    assert child is not None
    begin = time.monotonic()
    work.wait(0.2)
    assert time.monotonic() - begin >= 0.2
    os.kill(child.pid, signal.SIGKILL)
    work.wait(10)
    assert acquire(tmp_path / WORK_LOCK) is not None
