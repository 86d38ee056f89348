"""One process at a time works in a run's folder: an operating system's lock, which vanishes with the process.

This module loads nothing heavy, so that a folder in use is refused before anything else is.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fedcaptor.common.errors import StateError
from fedcaptor.common.files import make_folder
from fedcaptor.simulations.seeds import folder_of, parse_seeds

LOCK = "run.lock"
_SECONDS = 0.3  # `refuse_if_in_use` of another process holds a free lock for an instant


@contextmanager
def locked(directory: Path, on_takeover: Callable[[str], None] = lambda note: None) -> Iterator[None]:
    """Make the folder, and hold its lock for the length of the block, which the end of the process ends too.

    `on_takeover` is told in a sentence where an earlier holder died without a release. Raises StateError that names the
    process which holds the lock, ConfigError where there cannot be such a folder.
    """
    make_folder(directory)
    file = directory / LOCK
    lock = FileLock(file)
    try:
        lock.acquire(timeout=_SECONDS)
    except Timeout:
        raise _in_use(directory) from None
    try:
        if holder := _holder(file):
            on_takeover(f"{directory}: {holder} ended without a release of its lock, which is taken over")
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
        yield
    finally:
        if file.exists():
            file.write_text("")
        lock.release()


def refuse_if_in_use(out: Path, seeds: str | None = None) -> None:
    """Raise StateError, which names the process, where another one works in what a simulation would write to: the
    folder, those of a sweep's `seeds`, and the sweep that a single run may be a part of. Makes no file.
    """
    parts = [out.parent] if seeds is None else [folder_of(out, seed) for seed in parse_seeds(seeds)]
    for directory in (out, *parts):
        file = directory / LOCK
        if file.exists():
            try:
                with FileLock(file, timeout=0):
                    pass
            except Timeout:
                raise _in_use(directory) from None


def _in_use(directory: Path) -> StateError:
    holder = _holder(directory / LOCK) or "another process"
    return StateError(f"{directory} is in use by {holder}: wait for its end, stop it, or choose another --out")


def _holder(file: Path) -> str:
    """Who wrote the lock's file, in words; empty after a release."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(file.read_text())
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    return ""
