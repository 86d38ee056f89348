"""Make the text that a signature covers, as DSSE, version 1, does (`PAE` in its protocol.md)."""

from __future__ import annotations


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return a payload with its type, so that nothing else that the same key signs passes for it, and their lengths."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
