"""Keep the register of enrolled phones: their identities, signed by the operator who enrolled them.

A register is a text file: a first line that names the format, one identity a line (64 hex digits, in order, none
twice), and a last line with the operator's Ed25519 signature (128 hex digits) of all bytes before it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Container, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from fedcaptor.common.errors import ConfigError
from fedcaptor.common.files import read_bounded
from fedcaptor.common.secure.key_files import read_key
from fedcaptor.common.secure.keys import signed

HEAD = b"fedcaptor register 1\n"
MAX_BYTES = 1 << 26
"""Most bytes of a register: about a million phones."""
_IDENTITY = re.compile(r"[0-9a-f]{64}")
_LINE, _SIGNATURE = 65, 129  # bytes with their line's end


def sign(identities: Iterable[str], key: Ed25519PrivateKey) -> bytes:
    """Return a register of identities, each 64 hex digits. Raises ConfigError where one is malformed, or none given."""
    given = {identity.strip().lower() for identity in identities} - {""}
    for identity in given:
        if not _IDENTITY.fullmatch(identity):
            raise ConfigError(
                f"identity {identity[:80]!r} is not 64 hex digits: take what `fedcaptor phone identity` says"
            )
    if not given:
        raise ConfigError("no identity is given, a register holds at least one: enroll a phone")
    text = HEAD + "".join(f"{identity}\n" for identity in sorted(given)).encode()
    return text + key.sign(text).hex().encode() + b"\n"


class Register(Container[bytes]):
    """Tell which identities (32 bytes each) are on a verified register; its lines are searched as they are."""

    def __init__(self, lines: bytes) -> None:
        self._lines = lines

    def __call__(self, identity: bytes) -> bool:
        return identity in self

    def __len__(self) -> int:
        return len(self._lines) // _LINE

    def __contains__(self, identity: object) -> bool:
        if not isinstance(identity, bytes):
            return False
        line = identity.hex().encode() + b"\n"
        place = bisect_left(range(len(self)), line, key=self._line)
        return self._line(place) == line

    def _line(self, number: int) -> bytes:
        return self._lines[number * _LINE : (number + 1) * _LINE]


def read_register(path: Path, operator: bytes) -> Register:
    """Return the register in `path`, which `operator` (a public key) signed.

    Raises ConfigError where it cannot be read, is damaged, or signed by somebody else.
    """
    content = read_bounded(path, MAX_BYTES, "register")
    text, signature = content[:-_SIGNATURE], content[-_SIGNATURE:]
    if not content.startswith(HEAD) or (len(text) - len(HEAD)) % _LINE:
        raise ConfigError(f"{path} is no register, or damaged: take it from the operator again")
    try:
        genuine = signed(operator, bytes.fromhex(signature.decode()), text)
    except ValueError:  # no hex digits
        genuine = False
    if not genuine:
        raise ConfigError(
            f"{path} is not signed by the operator {operator.hex()}, or was changed since: take it from the operator "
            "again, and compare the operator's key"
        )
    return Register(text[len(HEAD) :])


def enrolled_by(settings: Mapping[str, Any]) -> Register | None:
    """Return the register by the settings `register` (a file) and `operator` (the public key that signed it), of a node
    or a run. None without a register; raises ConfigError where it has no operator.
    """
    register, operator = str(settings.get("register", "")), operator_of(settings)
    if not register:
        return None
    if operator is None:
        raise ConfigError(f"register is {register!r} and operator is empty: give the public key that signed it")
    return read_register(Path(register), operator)


def operator_of(settings: Mapping[str, Any]) -> bytes | None:
    """Return the public key in the setting `operator` of a node or a run, None where it is empty."""
    text = str(settings.get("operator", ""))
    return operator_key(text) if text else None


def operator_key(text: str, place: Path = Path()) -> bytes:
    """Return the operator's public key: `text` is 64 hex digits or the path of a PEM file, relative to `place`.

    Raises ConfigError where it is neither.
    """
    if _IDENTITY.fullmatch(text.lower()):
        return bytes.fromhex(text)
    key = read_key(place / text, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{text} holds no public Ed25519 key in PEM: give what `openssl pkey -pubout` writes")
    return key.public_bytes_raw()


def signing_key(path: Path) -> Ed25519PrivateKey:
    """Read the operator's private key, Ed25519 in PEM without a password. Raises ConfigError where it is none."""
    key = read_key(path, partial(load_pem_private_key, password=None))
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{path} holds no private Ed25519 key in PEM without a password: make one with "
            "`openssl genpkey -algorithm ed25519 -out operator.pem`"
        )
    return key
