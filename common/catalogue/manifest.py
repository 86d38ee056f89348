"""Say which files the catalogue has, signed by the operator: a JSON document in a DSSE envelope.

A file is named by its SHA-256 on the wire; its name tells what it is for. The serial number grows with each manifest,
so that a reader refuses an older one.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Literal, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedcaptor.common.catalogue.chunks import MOST, Chunk, Cut
from fedcaptor.common.errors import WireError
from fedcaptor.common.secure.dsse import pae
from fedcaptor.common.secure.keys import identity_of, signed

PAYLOAD_TYPE = "application/vnd.fedcaptor.manifest.v1+json"
MAX_BYTES = 1 << 24
"""Most bytes of an envelope."""
MAX_FILES = 256
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ChunkSize = Annotated[int, Field(ge=1, le=MOST)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Strict):
    """A file of the catalogue: what it is called, its SHA-256, and its chunks as (bytes, SHA-256), in order."""

    name: str = Field(pattern=NAME)
    digest: Digest
    size: int = Field(ge=0)
    chunks: tuple[tuple[ChunkSize, Digest], ...]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if sum(size for size, _ in self.chunks) != self.size:
            raise ValueError("the chunks do not add up to the size")
        return self

    @classmethod
    def of(cls, name: str, cut: Cut) -> FileEntry:
        """Describe a file that was cut."""
        chunks = tuple((chunk.size, chunk.digest) for chunk in cut.chunks)
        return cls(name=name, digest=cut.digest, size=cut.size, chunks=chunks)

    def pieces(self) -> list[Chunk]:
        """Return the chunks."""
        return [Chunk(size, digest) for size, digest in self.chunks]


class Manifest(_Strict):
    """All files of the catalogue. `serial` is larger than that of any manifest before."""

    format: Literal[1] = 1
    serial: int = Field(ge=1, lt=1 << 53)
    files: tuple[FileEntry, ...] = Field(max_length=MAX_FILES)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({entry.name for entry in self.files}) != len(self.files):
            raise ValueError("two files have one name")
        return self

    def file(self, name: str) -> FileEntry | None:
        """Return the file of a name."""
        return next((entry for entry in self.files if entry.name == name), None)

    def sealed(self, key: Ed25519PrivateKey) -> bytes:
        """Return the envelope with the signature of `key`."""
        payload = self.model_dump_json().encode()
        signature = {"keyid": identity_of(key).hex(), "sig": _coded(key.sign(pae(PAYLOAD_TYPE, payload)))}
        envelope = {"payloadType": PAYLOAD_TYPE, "payload": _coded(payload), "signatures": [signature]}
        return json.dumps(envelope).encode()


def opened(envelope: bytes, operator: bytes) -> Manifest:
    """Return the manifest in an envelope that `operator`, a public key of 32 bytes, signed. Raises WireError."""
    try:
        parts = json.loads(envelope)
        payload = base64.b64decode(parts["payload"], validate=True)
        signatures = [base64.b64decode(one["sig"], validate=True) for one in parts["signatures"]]
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error):
        raise WireError("malformed", "the manifest is no DSSE envelope") from None
    text = pae(PAYLOAD_TYPE, payload)
    if not any(signed(operator, signature, text) for signature in signatures[:8]):
        raise WireError("unsigned", f"the manifest is not signed by this phone's operator, {operator.hex()}")
    try:
        return Manifest.model_validate_json(payload)
    except ValidationError as error:
        problem = error.errors()[0]
        raise WireError("malformed", f"the manifest's {problem['loc']} is wrong: {problem['msg']}") from None


def _coded(content: bytes) -> str:
    return base64.b64encode(content).decode()
