"""Sign deliveries with the operator's Ed25519 key, and tell whether one is signed.

What is signed follows DSSE (`fedcaptor.common.secure.dsse`). As the payload may be half a gigabyte, its SHA-256 in hex
stands for it, over the whole request: header without the signature, and tensors. The signature travels in the header
and not in DSSE's JSON envelope.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcaptor.common.arrays import Tensors
from fedcaptor.common.errors import WireError
from fedcaptor.common.messages import DeliverRequest, request_digest
from fedcaptor.common.secure.dsse import pae
from fedcaptor.common.secure.keys import signed

PAYLOAD_TYPE = "application/vnd.fedcaptor.delivery.v1"


def sign(request: DeliverRequest, tensors: Tensors, key: Ed25519PrivateKey) -> DeliverRequest:
    """Return the request with the signature of `key`. The same delivery always gets the same one."""
    return request.model_copy(update={"signature": key.sign(_text(_digest(request, tensors))).hex()})


def verify(request: DeliverRequest, tensors: Tensors, operator: bytes) -> str:
    """Return the digest of a delivery (64 hex digits) that `operator`, a public key of 32 bytes, signed.

    Raises WireError for any other one.
    """
    digest = _digest(request, tensors)
    if not signed(operator, bytes.fromhex(request.signature), _text(digest)):
        state = "signed by somebody else, or was changed since" if request.signature else "not signed"
        raise WireError(
            "unsigned",
            f"the delivery is {state}: the server must sign with the key of this phone's operator, {operator.hex()}",
        )
    return digest


def _digest(request: DeliverRequest, tensors: Tensors) -> str:
    return request_digest(request.model_copy(update={"signature": ""}), tensors)


def _text(digest: str) -> bytes:
    return pae(PAYLOAD_TYPE, digest.encode())
