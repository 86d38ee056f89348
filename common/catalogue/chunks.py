"""Cut files into chunks by their content, so that a reader who has another version fetches what it lacks alone.

A safetensors file is cut at its tensors, so a tensor that did not change is a chunk that did not change wherever it
lies. No chunk is longer than `MOST`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MOST = 1 << 20
"""Most bytes of a chunk."""
_HEADER_BYTES = 1 << 24
_LENGTH = 8


@dataclass(frozen=True)
class Chunk:
    """Consecutive bytes of a file, by their number and SHA-256 (64 hex digits)."""

    size: int
    digest: str


@dataclass(frozen=True)
class Cut:
    """A file's size, SHA-256 and chunks, in their order."""

    size: int
    digest: str
    chunks: tuple[Chunk, ...]


def cut(path: Path) -> Cut:
    """Cut a file; it is read once."""
    with path.open("rb") as file:
        size = path.stat().st_size
        whole, chunks, start = hashlib.sha256(), [], 0
        for end in _ends(_tensor_ends(file, size), size):
            content = file.read(end - start)
            whole.update(content)
            chunks.append(Chunk(end - start, hashlib.sha256(content).hexdigest()))
            start = end
    return Cut(size, whole.hexdigest(), tuple(chunks))


def _ends(wanted: list[int], size: int) -> Iterator[int]:
    """Yield where chunks end: at the wanted places, at the file's end, and as often between as `MOST` asks for."""
    start = 0
    for end in [*wanted, size]:
        while start < end:
            start = min(start + MOST, end)
            yield start


def _tensor_ends(file: BinaryIO, size: int) -> list[int]:
    """Return where header and tensors of a safetensors file end, none for another file, and go back to its start."""
    try:
        length = int.from_bytes(file.read(_LENGTH), "little")
        if not 0 < length <= min(_HEADER_BYTES, size - _LENGTH):
            return []
        header = json.loads(file.read(length))
        begin = _LENGTH + length
        tensors = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        ends = sorted({begin, *(begin + end for end in tensors)})
        return ends if begin <= ends[0] and ends[-1] <= size else []
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return []  # some other format
    finally:
        file.seek(0)
