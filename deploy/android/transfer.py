"""Bring an archive onto a device such that a cut cable costs one piece, and nothing is half installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedcaptor.deploy.android.device import Device, DeviceError

PIECE = 4 << 20
Progress = Callable[[int, int], object]


def send_archive(
    device: Device, archive: Path, digest: str, part: str, progress: Progress = lambda done, size: None
) -> int:
    """Bring a file to `part` on the device, from where it was, verify it, and return the bytes that were sent.

    adb sends whole files alone: so it carries pieces, and the device appends each. `progress`: bytes done, and all.
    """
    size, sent = archive.stat().st_size, 0
    for _ in range(2):  # what a crash left may be damaged: then once from the beginning
        sent += _append(device, archive, size, part, progress)
        if device.run(f"sha256sum '{part}'", 600.0).split()[:1] == [digest]:
            return sent
        device.run(f"rm -f '{part}'")
    raise DeviceError(f"{device.serial}: {archive.name} arrived damaged twice: try another cable or port")


def _append(device: Device, archive: Path, size: int, part: str, progress: Progress) -> int:
    done = int(device.run(f"mkdir -p '{part.rpartition('/')[0]}' && touch '{part}' && wc -c < '{part}'"))
    if done > size:
        device.run(f": > '{part}'")
        done = 0
    begin = done
    with archive.open("rb") as file:
        file.seek(done)
        while piece := file.read(PIECE):
            device.send(piece, f"{part}.piece")
            told = device.run(f"cat '{part}.piece' >> '{part}' && rm -f '{part}.piece' && wc -c < '{part}'", 600.0)
            done += len(piece)
            if int(told) != done:
                raise DeviceError(f"{device.serial}: {part} has {told.strip()} bytes, must have {done}: try again")
            progress(done, size)
    return done - begin


def unpack(device: Device, part: str, target: str) -> None:
    """Unpack a verified archive as the folder `target`, which is whole or absent, and delete the archive."""
    fresh = f"{target}.new"
    device.run(f"rm -rf '{fresh}' && mkdir -p '{fresh}' && tar -xf '{part}' -C '{fresh}'", 1800.0)
    device.run(f"mv '{fresh}' '{target}' && rm -f '{part}'", 600.0)


def replace_file(device: Device, content: bytes, path: str, mode: str = "600") -> None:
    """Write a small file that is whole or as it was."""
    device.run(f"mkdir -p '{path.rpartition('/')[0]}'")
    device.send(content, f"{path}.new")
    device.run(f"chmod {mode} '{path}.new' && mv '{path}.new' '{path}'")
