"""Bring a file of the catalogue onto the phone: resume, take what an older version has, and verify before installing.

Bytes are collected in a file beside the target. Each chunk is checked as it is complete, and the whole before it takes
the target's place; wrong bytes never do. A download that was cut, or a process that was killed, goes on where it was.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from fedcaptor.common.catalogue.chunks import Chunk, cut
from fedcaptor.common.catalogue.manifest import FileEntry
from fedcaptor.common.catalogue.requests import blob
from fedcaptor.common.errors import LinkError, StateError, WireError

ATTEMPTS = 8
"""Most attempts in a row that bring nothing."""

Read = Callable[[str, int, int], Iterator[bytes]]
"""Yields a resource's bytes from an offset on, so many at most. Raises LinkError."""
T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Downloaded:
    """A verified file that is not installed yet. `received`: bytes that came over the network."""

    file: Path
    target: Path
    received: int

    def install(self) -> None:
        """Put it in the target's place."""
        os.replace(self.file, self.target)


def is_current(entry: FileEntry, target: Path) -> bool:
    """Tell whether a file is that of the catalogue already."""
    if not target.is_file() or target.stat().st_size != entry.size:
        return False
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.digest


def download(entry: FileEntry, target: Path, read: Read, sleep: Callable[[float], object] = time.sleep) -> Downloaded:
    """Collect and verify a file beside its target; chunks that the old target has are copied.

    `sleep` waits between attempts. Raises LinkError where the network does not bring it, WireError where the manifest
    contradicts itself, and StateError where the disk does not take it: what was collected is deleted then.
    """
    partial = target.with_name(f".{target.name}.{entry.digest[:16]}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for other in target.parent.glob(f".{target.name}.*.partial"):
            if other != partial:  # of a version that is no longer wanted
                other.unlink()
        with partial.open("ab+") as file:
            collection = _Collection(entry, file, _Local(target), read)
            patiently(collection.proceed, collection.size, sleep)
            os.fsync(file.fileno())
    except (OSError, WireError) as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, WireError):
            raise
        raise StateError(
            f"{target} cannot be fetched ({error.strerror}): free some space, or check the folder; the old file stays"
        ) from error
    return Downloaded(partial, target, collection.received)


def patiently(act: Callable[[], T], size: Callable[[], int], sleep: Callable[[float], object]) -> T:
    """Return what `act` does; while it raises a LinkError it is called again, after pauses that become longer.

    It gives up after `ATTEMPTS` in a row in which `size` did not grow.
    """
    before, failures = size(), 0
    while True:
        try:
            return act()
        except LinkError as error:
            failures = 1 if size() > before else failures + 1
            before = size()
            if failures == ATTEMPTS or not error.again:
                raise
            logger.info("%s; trying again", error)
            sleep(2.0 ** (failures - 1) * random.uniform(0.5, 1))


class _Local:
    """Chunks that a file on this phone has."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[Chunk, int] = {}
        place = 0
        for chunk in cut(path).chunks if path.is_file() else ():
            self._places[chunk] = place
            place += chunk.size

    def __contains__(self, chunk: Chunk) -> bool:
        return chunk in self._places

    def content(self, chunk: Chunk) -> bytes:
        with self._path.open("rb") as file:
            file.seek(self._places[chunk])
            return file.read(chunk.size)


class _Collection:
    """A file in the making. It holds the leading bytes, and every whole chunk of them is right."""

    def __init__(self, entry: FileEntry, file: IO[bytes], local: _Local, read: Read) -> None:
        self.entry, self.received, self._mistakes = entry, 0, 0
        self._file, self._local, self._read = file, local, read
        self._chunks, self._starts = entry.pieces(), [0]
        for chunk in self._chunks:
            self._starts.append(self._starts[-1] + chunk.size)
        file.truncate(min(self.size(), entry.size))  # what a process that was killed left, as far as it is right
        if (wrong := self._wrong(0)) is not None:
            file.truncate(wrong)

    def size(self) -> int:
        """Return how many bytes are there."""
        return self._file.seek(0, os.SEEK_END)

    def proceed(self) -> None:
        """Collect what is missing. Raises LinkError where the network does not bring it, or brings something else."""
        while (at := self.size()) < self.entry.size:
            number = bisect_right(self._starts, at) - 1
            if at == self._starts[number] and self._chunks[number] in self._local:
                self._file.write(self._local.content(self._chunks[number]))
                self._require_right(at)
            else:
                self._receive(at, number)
        self._file.seek(0)
        if hashlib.file_digest(self._file, "sha256").hexdigest() != self.entry.digest:  # type: ignore[arg-type]
            raise WireError("wrong_digest", f"the manifest's chunks of {self.entry.name} are not those of its digest")

    def _receive(self, at: int, number: int) -> None:
        """Append what lacks up to the next chunk that the phone has."""
        end = number + 1
        while end < len(self._chunks) and self._chunks[end] not in self._local:
            end += 1
        wanted = self._starts[end]
        for piece in self._read(blob(self.entry.digest), at, wanted - at):
            self.received += len(piece)
            if len(piece) > wanted - at:
                raise LinkError(f"the catalogue sent more of {self.entry.name} than was asked for")
            self._file.write(piece)
            self._require_right(at)
            at += len(piece)
        if at < wanted:
            raise LinkError(f"the catalogue ended {self.entry.name} at byte {at}, {wanted} were to come")

    def _require_right(self, at: int) -> None:
        """Check the chunks that became whole with the bytes from `at` on, and cut them off where one is wrong."""
        if (wrong := self._wrong(bisect_right(self._starts, at) - 1)) is not None:
            self._file.truncate(wrong)
            self._mistakes += 1  # the first may be of bytes that an earlier process left
            text = f"the catalogue sent bytes that are not those of {self.entry.name}"
            raise LinkError(text, again=self._mistakes < ATTEMPTS)

    def _wrong(self, first: int) -> int | None:
        """Return where the first wrong chunk from number `first` on begins, None where all that are whole are right."""
        size = self.size()
        self._file.seek(self._starts[first])
        for start, chunk in zip(self._starts[first:], self._chunks[first:], strict=False):
            if start + chunk.size > size:
                break
            if hashlib.sha256(self._file.read(chunk.size)).hexdigest() != chunk.digest:
                return start
        return None
