"""Keep a phone's state between the steps of one secure sum, as bytes for its own storage. It holds secrets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedcaptor.common.errors import StateError
from fedcaptor.common.secure.messages import SHARES, Entry, Flags, Hashes, Places, Tokens, layout


@dataclass(frozen=True, eq=False, repr=False)
class PhoneState:
    """Hold what each step leaves for later ones; arrays are empty before their step and when no longer needed.

    `requests`: SHA-256 of each answered request; `replies`: what was answered. `secrets`: private channel key, private
    mask key, seed. `shape`: phones, holders, threshold, place, most neighbours. By neighbour: `places`, `chose` (it
    drew this phone) and `masks` (public keys); of those who did, `opening` (keys of their shares) and `expected` (their
    tokens). By holder: `holders` (places), `identities`, `tokens`. By phone whose shares arrived: `held` (places),
    `sound`, `shares` and `due` (their tokens). `survivors`: the signed bit map; `kinds`: what is shown of each held
    phone.
    """

    binding: Flags
    secrets: Hashes
    requests: Hashes
    replies: tuple[bytes, ...]
    shape: Places
    root: Flags
    session: Flags
    holders: Places
    identities: Hashes
    tokens: Tokens
    places: Places
    chose: Flags
    masks: Hashes
    opening: Hashes
    expected: Tokens
    held: Places
    sound: Flags
    shares: Annotated[NDArray[np.uint8], Entry("u1", SHARES)]
    due: Tokens
    survivors: Flags
    kinds: Flags

    @classmethod
    def new(cls, binding: bytes) -> Self:
        """Make the state before the first step."""
        fields: dict[str, Any] = {name: cls.empty(name) for name in layout(cls)}
        return cls(**{**fields, "binding": np.frombuffer(binding, np.uint8), "replies": ()})

    @classmethod
    def empty(cls, name: str) -> NDArray[Any]:
        """Make the value of a field without entries."""
        entry = layout(cls)[name] or Entry("u1")
        return np.zeros((0, entry.width) if entry.width > 1 else 0, entry.dtype)

    def to_bytes(self) -> bytes:
        """Encode the whole state; store it before the reply is sent."""
        arrays = {
            name: np.ascontiguousarray(getattr(self, name)) for name, entry in layout(type(self)).items() if entry
        }
        for step, reply in enumerate(self.replies):
            arrays[f"reply.{step}"] = np.frombuffer(reply, np.uint8)
        return save(arrays)

    @classmethod
    def from_bytes(cls, data: bytes, binding: bytes) -> Self:
        """Decode what `to_bytes` gave. Raises StateError on damage, or when it was stored under other terms."""
        try:
            arrays = load(data)
            replies = tuple(arrays.pop(f"reply.{step}").tobytes() for step in range(len(arrays["requests"])))
            state = cls(replies=replies, **arrays)
        except (SafetensorError, TypeError, KeyError) as error:
            raise StateError(f"the stored secure sum is damaged ({type(error).__name__}): erase it") from None
        if state.binding.tobytes() != binding:
            raise StateError("the stored secure sum was begun under other terms: erase it, or ask for the same terms")
        return state
