"""Say what a phone asks the catalogue for, and sign it with the phone's node key.

Each request carries its own proof, so that whatever ends TLS before the catalogue need know nothing of phones. A
signature covers method, resource, range and time: it opens nothing else, and nothing later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from fedcaptor.common.secure.dsse import pae

SERVICE = "google.bytestream.ByteStream"
READ = f"/{SERVICE}/Read"
LATEST = "manifests/latest"
BLOB = re.compile(r"blobs/([0-9a-f]{64})")

PAYLOAD_TYPE = "application/vnd.fedcaptor.catalogue-request.v1"
KEY, TIME, SIGNATURE = "fedcaptor-key", "fedcaptor-time", "fedcaptor-signature-bin"
"""Metadata: the second field of the OpenSSH public key, seconds since 1970, and the signature (DER)."""
SKEW_SECONDS = 300
"""Most seconds between the phone's clock and the catalogue's."""
MOST_SECONDS = 600
"""The longest deadline of a read, which each must have: it ends those that do not come on."""
KEY_TYPE = "ecdsa-sha2-nistp384"
PUBLIC = re.compile(r"AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhB[A-Za-z0-9+/]{128,}={0,2}")
"""The second field of a line of that type: type, curve, length and form of the point are always the same."""


def blob(digest: str) -> str:
    """Return the resource that is the file of a SHA-256."""
    return f"blobs/{digest}"


def public_text(key: EllipticCurvePublicKey) -> str:
    """Return a public key as it stands in the second field of OpenSSH's line."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1].decode()


def metadata(
    key: EllipticCurvePrivateKey, resource: str, offset: int, limit: int, now: int
) -> tuple[tuple[str, str | bytes], ...]:
    """Return what a read is sent with; `now` in seconds since 1970."""
    signature = key.sign(_text(resource, offset, limit, now), ECDSA(SHA384()))
    return (KEY, public_text(key.public_key())), (TIME, str(now)), (SIGNATURE, signature)


def genuine(public: str, signature: bytes, resource: str, offset: int, limit: int, at: int) -> bool:
    """Tell whether a read was signed by the key `public`, as `public_text` has it."""
    try:
        key = load_ssh_public_key(f"{KEY_TYPE} {public}".encode())
        assert isinstance(key, EllipticCurvePublicKey)
        key.verify(signature, _text(resource, offset, limit, at), ECDSA(SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return True


def proof_in(sent: Mapping[str, str | bytes]) -> tuple[str, int, bytes] | None:
    """Return key, time and signature of a read's metadata, None where one is missing or malformed."""
    public, at, signature = sent.get(KEY), sent.get(TIME), sent.get(SIGNATURE)
    if not isinstance(public, str) or not isinstance(signature, bytes) or not isinstance(at, str):
        return None
    return (public, int(at), signature) if re.fullmatch(r"\d{1,12}", at, re.ASCII) else None


def _text(resource: str, offset: int, limit: int, at: int) -> bytes:
    """The resource may hold anything: it stands between a first line and three last ones."""
    return pae(PAYLOAD_TYPE, f"{READ}\n{resource}\n{offset}\n{limit}\n{at}".encode())
