"""Measure programs on a device with the client that is installed there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedcaptor.deploy.android.device import DeviceError
from fedcaptor.deploy.android.install import Installation
from fedcaptor.deploy.android.transfer import send_archive


def bench(
    installation: Installation,
    models: Sequence[Path],
    say: Callable[[str], object],
    threads: int = 1,
    seconds: float = 1.0,
    data: Path | None = None,
    own: bool = False,
) -> list[dict[str, Any]]:
    """Return the rows of `fedcaptor.client.measure` on the device.

    `seconds`: of timing, at least; `data`: labelled images (.npz) for the accuracy; `own`: measure the phone's submodel
    too, which stays there. Raises DeviceError where there is none yet, or a program cannot be measured.
    """
    installation.require_installed()
    device, there = installation.device, f"{installation.home}/tmp/bench"
    sent = {f"{there}/{number}.onnx": model for number, model in enumerate(models)}
    found = device.run(f"ls '{installation.home}'/phone/*/submodel.onnx 2>/dev/null || true").split() if own else []
    if own and not found:
        raise DeviceError(f"{device.serial} has no submodel yet: `fedcaptor devices logs` says how far it is")
    words = ["--json", "--threads", f"{threads}", "--seconds", f"{seconds}", *sent, *found]
    if data is not None:
        words[1:1] = ["--data", f"{there}/data.npz"]
        sent[f"{there}/data.npz"] = data
    try:
        for target, file in sent.items():
            send_archive(device, file, hashlib.sha256(file.read_bytes()).hexdigest(), target)
            say(f"{file.name} sent")
        say("measuring")
        told = json.loads(installation.launch(f"python -m fedcaptor.client.measure {' '.join(words)}", 3600.0))
    except json.JSONDecodeError as error:
        raise DeviceError(f"{device.serial}: the client's figures cannot be read: {error}") from error
    finally:
        with suppress(DeviceError):  # the device may be gone, and the next call replaces what lies there
            device.run(f"rm -rf '{there}'")
    names = [model.name for model in models] + ["its own submodel"] * len(found)
    return [{**row, "model": name} for row, name in zip(told, names, strict=True)]
