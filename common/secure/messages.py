"""Define the messages of one secure sum: frozen values with an exact layout, decoded once.

A message is a version byte, a kind byte, a 16-byte tag and its fields in order, little-endian: a number is a uint32; a
list is its length as a uint32 and then its entries: uint32 words, or rows of a fixed number of bytes. The tag is
the start of `Terms.binding` until the list of keys is committed, of the session from then on. Places are positions in
that list; "in order" always means by place. A message is as long as its fields, and nothing is copied from it before
that is checked.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Self, get_type_hints

import numpy as np
from numpy.typing import NDArray

from fedcaptor.common.errors import WireError

VERSION = 2
STEPS = 6
MASKING = 3
"""The step, counted from 0, whose reply holds the masked vector."""
TOKEN = 16
SEALED_EXTRA = 16
MARK = 16
SHARES = 64
"""Bytes of a holder's two shares: of the seed, then of the mask key."""
SEALED = SHARES + SEALED_EXTRA + 2 * MARK
"""Bytes of what a phone sends for one holder: both shares, sealed, and a mark of either."""
NOTHING, SEED, MASK_KEY = range(3)
"""What a holder shows of one phone."""

_TAG = 16
_HEAD = struct.Struct(f"<BB{_TAG}s")
_COUNT = struct.Struct("<I")


@dataclass(frozen=True)
class Entry:
    """Describe one entry of a list: `width` values of `dtype`."""

    dtype: str
    width: int = 1


Flags = Annotated[NDArray[np.uint8], Entry("u1")]
Tokens = Annotated[NDArray[np.uint8], Entry("u1", TOKEN)]
Hashes = Annotated[NDArray[np.uint8], Entry("u1", 32)]
Signatures = Annotated[NDArray[np.uint8], Entry("u1", 64)]
Sealed = Annotated[NDArray[np.uint8], Entry("u1", SEALED)]
Adverts = Annotated[NDArray[np.uint8], Entry("u1", 160)]
Places = Annotated[NDArray[np.uint32], Entry("<u4")]


_LAYOUTS: dict[type, dict[str, Entry | None]] = {}


def layout(kind: type) -> dict[str, Entry | None]:
    """Return the fields of a message in order, None for a number."""
    if kind not in _LAYOUTS:
        notes = {n: getattr(hint, "__metadata__", ()) for n, hint in get_type_hints(kind, include_extras=True).items()}
        _LAYOUTS[kind] = {f.name: next(iter(notes[f.name]), None) for f in fields(kind)}
    return _LAYOUTS[kind]


@dataclass(frozen=True, eq=False, repr=False)
class Message:
    """Base of all messages."""

    KIND: ClassVar[int]

    def to_bytes(self, tag: bytes) -> bytes:
        """Encode the message for the sum whose tag `tag` starts with."""
        parts = [_HEAD.pack(VERSION, self.KIND, tag[:_TAG])]
        for name, entry in layout(type(self)).items():
            value = getattr(self, name)
            if entry is None:
                parts.append(_COUNT.pack(value))
            else:
                parts += [_COUNT.pack(len(value)), np.ascontiguousarray(value, entry.dtype).tobytes()]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes, tag: bytes) -> Self:
        """Decode the message in `data`; its arrays are views. Raises WireError unless it is one of this sum."""
        _check_head(data, cls.KIND, tag)
        offset, values = _HEAD.size, {}
        for name, entry in layout(cls).items():
            if len(data) - offset < _COUNT.size:
                raise WireError("malformed", "a message of a secure sum ends too early")
            (values[name],) = _COUNT.unpack_from(data, offset)
            offset += _COUNT.size
            if entry is not None:
                values[name] = array = _array(data, offset, values[name], entry)
                offset += array.nbytes
        if offset != len(data):
            raise WireError("oversized", "a message of a secure sum is longer than its fields")
        return cls(**values)


def _array(data: bytes, offset: int, count: int, entry: Entry) -> NDArray[Any]:
    dtype = np.dtype(entry.dtype)
    if count * entry.width * dtype.itemsize > len(data) - offset:
        raise WireError("wrong_shape", "a list in a secure sum's message is longer than the message")
    array = np.frombuffer(data, dtype, count * entry.width, offset)
    return array if entry.width == 1 else array.reshape(count, entry.width)


def _check_head(data: bytes, kind: int, tag: bytes) -> None:
    if len(data) < _HEAD.size:
        raise WireError("malformed", "a message of a secure sum ends too early")
    version, found, of = _HEAD.unpack_from(data)
    if version != VERSION:
        raise WireError("wrong_version", f"a secure sum's message has version {version}, must be {VERSION}")
    if found != kind:
        raise WireError("wrong_kind", f"a secure sum's message is of kind {found}, must be {kind}")
    if of != tag[:_TAG]:
        raise WireError("wrong_digest", "a message belongs to another secure sum, or to another list of its keys")


def kind_of(data: bytes) -> int:
    """Return the kind of a message, 255 for bytes that are none."""
    return data[1] if len(data) >= _HEAD.size else 255


@dataclass(frozen=True, eq=False, repr=False)
class Start(Message):
    """The server tells a phone that the sum begins."""

    KIND = 0


@dataclass(frozen=True, eq=False, repr=False)
class Advert(Message):
    """A phone sends identity and two public keys for this sum, 32 bytes each, and the identity's signature on them."""

    KIND = 1
    keys: Adverts


@dataclass(frozen=True, eq=False, repr=False)
class Roster(Message):
    """The server tells a phone that `phones` keys are on the list with this `root`, its own at `place`."""

    KIND = 2
    phones: int
    holders: int
    threshold: int
    place: int
    root: Hashes
    proof: Hashes


@dataclass(frozen=True, eq=False, repr=False)
class Choice(Message):
    """A phone sends the places of its holders, in order."""

    KIND = 3
    holders: Places


@dataclass(frozen=True, eq=False, repr=False)
class Neighbours(Message):
    """The server sends a phone its holders and those who chose it (`chose` is 1), in order, one proof for all keys."""

    KIND = 4
    places: Places
    chose: Flags
    keys: Adverts
    proof: Hashes


@dataclass(frozen=True, eq=False, repr=False)
class Shares(Message):
    """A phone commits to its seed and sends, for each holder in order, the sealed shares and a mark of either."""

    KIND = 5
    commitment: Hashes
    sealed: Sealed


@dataclass(frozen=True, eq=False, repr=False)
class Inbox(Message):
    """The server tells a phone which neighbours are `active`: 1 for each, in order, that sent its shares.

    `sealed` is what those of them who chose the phone sealed for it, with the marks, in order.
    """

    KIND = 6
    active: Flags
    sealed: Sealed


@dataclass(frozen=True, eq=False, repr=False)
class Masked(Message):
    """A phone sends its packed, masked vector and, for each active holder in order, a token: their mask is in it."""

    KIND = 7
    vector: Flags
    tokens: Tokens


@dataclass(frozen=True, eq=False, repr=False)
class Survivors(Message):
    """The server sends a phone the survivors, a bit for each phone on the list: 1 where its vector is in the sum.

    The bits are little-endian. `tokens` are from those of the survivors who sealed shares for it, in order.
    """

    KIND = 8
    survivors: Flags
    tokens: Tokens


@dataclass(frozen=True, eq=False, repr=False)
class Endorsement(Message):
    """A phone sends its identity's signature on the list of survivors."""

    KIND = 9
    signature: Signatures


@dataclass(frozen=True, eq=False, repr=False)
class Endorsements(Message):
    """The server sends a phone the places of holders and their signatures on its list of survivors, in order."""

    KIND = 10
    places: Places
    signatures: Signatures


@dataclass(frozen=True, eq=False, repr=False)
class Reveal(Message):
    """A phone shows shares: `kinds` has NOTHING, SEED or MASK_KEY for each phone whose shares it holds, in order."""

    KIND = 11
    kinds: Flags
    shares: Hashes
