"""An input as a file, for readers that take a path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


@contextmanager
def file_of(data: bytes, name: str) -> Iterator[Path]:
    """Yield the path of a file with this content; it is gone afterwards."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        yield path
