"""Read keys from files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm

from fedcaptor.common.files import read_bounded

_MAX_BYTES = 1 << 14


def read_key(path: Path, load: Callable[[bytes], object]) -> object | None:
    """Return the key that `load` (a loader of `cryptography`) finds in a file, None where it is none.

    Raises ConfigError where the file cannot be read or is too large for a key.
    """
    content = read_bounded(path, _MAX_BYTES, "key")
    try:
        return load(content)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
