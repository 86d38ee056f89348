"""The catalogue's manifest: any envelope, and any payload that the operator signed."""

from __future__ import annotations

import base64
import json

from fedcaptor.common.catalogue.chunks import Chunk, Cut
from fedcaptor.common.catalogue.manifest import PAYLOAD_TYPE, FileEntry, Manifest, opened
from fedcaptor.common.errors import WireError
from fedcaptor.common.secure.dsse import pae
from fedcaptor.common.secure.keys import identity_of
from tests.common.secure_cohort import identity
from tests.fuzz.parts import chosen, join, split

OPERATOR = identity("operator")
MANIFEST = Manifest(
    serial=7,
    files=(FileEntry.of("base.safetensors", Cut(3, "a" * 64, (Chunk(1, "b" * 64), Chunk(2, "c" * 64)))),),
)


def seeds() -> dict[str, bytes]:
    return {
        "envelope": join(b"\0", MANIFEST.sealed(OPERATOR)),
        "payload": join(b"\1", MANIFEST.model_dump_json().encode()),
    }


def one(data: bytes) -> bool:
    kind, content = split(data, 2)[:2]
    try:
        opened(sealed(content) if chosen(kind, 2) else content, identity_of(OPERATOR))
    except WireError:
        return False
    return True


def sealed(payload: bytes) -> bytes:
    """Sign a payload, whatever it is."""
    signature = base64.b64encode(OPERATOR.sign(pae(PAYLOAD_TYPE, payload))).decode()
    return json.dumps({"payload": base64.b64encode(payload).decode(), "signatures": [{"sig": signature}]}).encode()
