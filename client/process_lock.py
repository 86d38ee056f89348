"""Locks of the operating system that end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from fedcaptor.common.files import make_folder


def acquire(path: Path) -> int | None:
    """Take the lock of a file, which is made, and return its descriptor: the lock is held until every copy of it is
    closed, also those that child processes inherit. Returns None where it is held already.
    """
    make_folder(path.parent)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock
