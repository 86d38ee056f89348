"""Sign an enrolment with the key that is to be enrolled, so that nobody enrols a key that is another's."""

from __future__ import annotations

import hashlib
import re

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from fedcaptor.common.catalogue.requests import KEY_TYPE, PUBLIC, public_text
from fedcaptor.common.enrolment.enrolment_pb2 import EnrolRequest
from fedcaptor.common.secure.dsse import pae

SERVICE = "fedcaptor.enrolment.v1.Enrolment"
METHOD = f"/{SERVICE}/Enrol"
TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
"""A token: 32 random bytes in URL-safe base64."""
_TYPE = "application/vnd.fedcaptor.enrolment.v1"


def request_of(key: EllipticCurvePrivateKey, token: str) -> EnrolRequest:
    """Return what a phone sends to enrol the public part of its key."""
    signature = key.sign(pae(_TYPE, token.encode()), ECDSA(SHA384()))
    return EnrolRequest(token=token, public_key=public_text(key.public_key()), signature=signature)


def is_proven(request: EnrolRequest) -> bool:
    """Tell whether who sent a request has the private part of the key in it."""
    if not PUBLIC.fullmatch(request.public_key):
        return False
    try:
        key = load_ssh_public_key(f"{KEY_TYPE} {request.public_key}".encode())
        assert isinstance(key, EllipticCurvePublicKey)
        key.verify(request.signature, pae(_TYPE, request.token.encode()), ECDSA(SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return True


def digest_of(token: str) -> str:
    """Return what a server keeps of a token, which cannot be turned back into it."""
    return hashlib.sha256(token.encode()).hexdigest()
