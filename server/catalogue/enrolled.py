"""Know the node keys of enrolled phones from a file that the operator may change at any moment."""

from __future__ import annotations

import logging
from collections.abc import Container
from pathlib import Path

from fedcaptor.common.catalogue.requests import KEY_TYPE, PUBLIC
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.files import read_bounded

MAX_BYTES = 1 << 28
"""Most bytes of a file of keys: about a million phones."""

logger = logging.getLogger(__name__)


class EnrolledKeys(Container[str]):
    """Tell which public keys are in a file, one OpenSSH line (`phone.key.pub`) each.

    The file is read again when it changes. While it is then malformed the keys that were read last count: a slip of the
    pen must not shut out all phones. Raises ConfigError where it is unreadable or malformed at first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._state()  # before it is read: what changes meanwhile is read again
        self._keys = read_keys(path)

    def __contains__(self, public: object) -> bool:
        """Tell whether a key is enrolled, given as in the second field of its line."""
        if (state := self._state()) != self._seen:
            self._seen = state
            try:
                self._keys = read_keys(self._path)
                logger.info("%d phones are enrolled", len(self._keys))
            except ConfigError as error:
                logger.error("%s; the %d keys read before still count", error, len(self._keys))
        return public in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def _state(self) -> tuple[int, ...]:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino


def read_keys(path: Path) -> frozenset[str]:
    """Return the second fields of a file's lines; blank ones and comments (`#`) are skipped. Raises ConfigError."""
    keys = set()
    for number, line in enumerate(
        read_bounded(path, MAX_BYTES, "list of keys").decode(errors="replace").splitlines(), 1
    ):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if not (words[0] == KEY_TYPE and len(words) > 1 and PUBLIC.fullmatch(words[1])):
            raise ConfigError(
                f"{path}, line {number} is no {KEY_TYPE} key: give what `ssh-keygen -t ecdsa -b 384` wrote as .pub"
            )
        keys.add(words[1])
    return frozenset(keys)
