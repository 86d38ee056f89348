"""Write files such that they are whole or absent, whatever happens meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from fedcaptor.common.errors import ConfigError


@contextmanager
def replacing(path: Path, *, private: bool = False, durable: bool = False) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to: renamed to it when the block ends well, removed otherwise.

    `private`: of mode 0600 from the start, for its owner's eyes alone; clear leftovers first.
    `durable`: the content survives a power cut once the name is there.
    Write under that very name, so not with safetensors' `save_file`: it goes through a temporary file of its own, which
    a kill would leave where `clear_leftovers` does not look.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    if private:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        yield temporary
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file through `replacing`; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, private=private) as temporary:
        temporary.write_bytes(content)


def check_writable(path: Path) -> None:
    """Make the folder of `path`, and check that a file can be written there: before long work, not after it.

    Raises ConfigError where it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({_reason(path.parent, error)}): choose another place") from error
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name a file in it")


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where there is none. Raises ConfigError where there cannot be one."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be a folder ({_reason(path, error)}): choose another place") from error


def no_file(path: Path) -> str | None:
    """Say why there is no file to read, and what to do; None where there is one."""
    if path.is_dir():
        return f"{path} is a folder: name a file in it"
    return None if path.exists() else f"{path} does not exist: correct the path"


def read_bounded(path: Path, most: int, kind: str) -> bytes:
    """Read a file of at most `most` bytes; `kind` says in errors what it should be.

    Raises ConfigError where there is none, or it is larger or unreadable.
    """
    if (problem := no_file(path)) is not None:
        raise ConfigError(problem)
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    if len(content) > most:
        raise ConfigError(f"{path} has more than {most:,} bytes, the bound of a {kind}: give another file")
    return content


def _reason(folder: Path, error: OSError) -> str | None:
    """Say why there is no such folder: a file of its name or of one above it, or what the system says."""
    taken = next((place for place in (folder, *folder.parents) if place.is_file()), None)
    return error.strerror if taken is None else f"{taken} is a file"


def clear_leftovers(path: Path) -> list[Path]:
    """Delete what processes that were killed while they replaced `path` left beside it; returns what was there.

    For files that one process alone writes: the temporary file of another writer would go too.
    """
    found = sorted(path.parent.glob(f".{path.name}.*.tmp"))
    for temporary in found:
        temporary.unlink(missing_ok=True)
    return found
