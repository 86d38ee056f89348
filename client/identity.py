"""Keep the phone's lasting signature key: made at first use, stored in its folder for its owner's eyes alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcaptor.client.folder import IDENTITY_FILE
from fedcaptor.common.errors import StateError
from fedcaptor.common.files import clear_leftovers, replacing

_BYTES = 32


def identity(folder: Path, random: Callable[[int], bytes] = os.urandom) -> Ed25519PrivateKey:
    """Return the Ed25519 key in `folder`, a file of 32 raw bytes and mode 0600; it is made if it is missing.

    Raises StateError when the file holds something else.
    """
    path = folder / IDENTITY_FILE
    if not path.exists():
        clear_leftovers(path)
        with replacing(path, private=True, durable=True) as temporary:
            temporary.write_bytes(random(_BYTES))
    content = path.read_bytes()
    if len(content) != _BYTES:
        raise StateError(f"{path} has {len(content)} bytes, must have {_BYTES}: restore it, or remove it for a new one")
    return Ed25519PrivateKey.from_private_bytes(content)
