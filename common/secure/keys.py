"""Derive keys for one sum. Each derivation names the protocol, the sum, the purpose and the pair.

`cryptography` has X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20-Poly1305 (RFC 8439) and Ed25519 (RFC 8032).
`session` (32 bytes) covers the terms and the committed list of keys: what is made for one sum fits no other.
"""

from __future__ import annotations

import hashlib
import struct

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedcaptor.common.secure.messages import MARK, TOKEN
from fedcaptor.common.secure.terms import PROTOCOL, Terms

_NONCE = bytes(12)  # each key seals one message


def context(purpose: str, binding: bytes, *phones: int) -> bytes:
    """Return a derivation's `info`, or a signed text's head: protocol, 0, purpose, 0, 32 bytes, places as uint32."""
    return b"\0".join((PROTOCOL, purpose.encode(), binding)) + struct.pack(f"<{len(phones)}I", *phones)


def derive(secret: bytes, info: bytes, length: int = 32) -> bytes:
    """Derive bytes by HKDF-SHA256 without salt; `secret` is a shared or random 32-byte key."""
    return HKDF(SHA256(), length, None, info).derive(secret)


def session_of(terms: Terms, phones: int, holders: int, threshold: int, root: bytes) -> bytes:
    """Hash terms, graph parameters and the list of keys together: 32 bytes."""
    numbers = struct.pack("<III", phones, holders, threshold)
    return hashlib.sha256(context("session", terms.binding) + numbers + root).digest()


def public_of(private: bytes) -> bytes:
    """Return the X25519 public key of a private one, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


class Agreement:
    """Hold one X25519 private key, to agree with many."""

    def __init__(self, private: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(private)

    def secret(self, public: bytes) -> bytes:
        """Return 32 shared bytes. Raises ValueError on a public key of small order."""
        return self._private.exchange(X25519PublicKey.from_public_bytes(public))


def mask_seed(shared: bytes, session: bytes, one: int, other: int) -> bytes:
    """Derive the seed of two phones' common mask; the one with the lower place adds it, the other subtracts it."""
    return derive(shared, context("pair mask", session, min(one, other), max(one, other)))


def self_seed(seed: bytes, session: bytes, phone: int) -> bytes:
    """Derive the seed of a phone's own mask."""
    return derive(seed, context("self mask", session, phone))


def seed_commitment(seed: bytes, session: bytes, phone: int) -> bytes:
    """Derive 32 bytes by which the server tells whether it put the right seed together."""
    return derive(seed, context("seed commitment", session, phone))


def share_key(shared: bytes, session: bytes, owner: int, holder: int) -> tuple[bytes, bytes]:
    """Derive the key that seals the owner's shares for a holder, and a 16-byte token.

    By the token the owner tells the holder later that their common mask is in its vector.
    """
    both = derive(shared, context("shares", session, owner, holder), 32 + TOKEN)
    return both[:32], both[32:]


def share_mark(session: bytes, owner: int, holder: int, kind: int, share: bytes) -> bytes:
    """Hash one share to 16 bytes, by which everyone can tell later whether its holder shows what its owner dealt."""
    return hashlib.sha256(context("share mark", session, owner, holder, kind) + share).digest()[:MARK]


def seal(key: bytes, shares: bytes) -> bytes:
    """Encrypt shares; the result is 16 bytes longer."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, shares, None)


def unseal(key: bytes, sealed: bytes) -> bytes | None:
    """Decrypt shares; None where they were changed or meant for another pair or sum."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, None)
    except InvalidTag:
        return None


def survivors_text(session: bytes, survivors: bytes) -> bytes:
    """Return what a phone signs to endorse a list of survivors (its bit map)."""
    return context("survivors", session) + hashlib.sha256(survivors).digest()


def identity_of(private: Ed25519PrivateKey) -> bytes:
    """Return the Ed25519 public key, 32 bytes."""
    return private.public_key().public_bytes_raw()


def signed(identity: bytes, signature: bytes, text: bytes) -> bool:
    """Tell whether `signature` is that of `text` by an identity."""
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


def advert_text(terms: Terms, channel: bytes, mask: bytes) -> bytes:
    """Return what a phone signs to make two public keys its own for one sum."""
    return context("advert", terms.binding) + channel + mask


def sound_advert(terms: Terms, advert: bytes) -> bool:
    """Tell whether 160 bytes (identity, channel key, mask key, signature) are signed by the identity in them."""
    return signed(advert[:32], advert[96:], advert_text(terms, advert[32:64], advert[64:96]))


def usable_advert(advert: bytes) -> bool:
    """Tell whether both public keys can be agreed with: none is of small order."""
    try:
        for public in (advert[32:64], advert[64:96]):
            Agreement(bytes(32)).secret(public)
    except ValueError:
        return False
    return True
