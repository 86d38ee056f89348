"""Run a phone's side of one secure sum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcaptor.client.secure_sum import steps
from fedcaptor.client.secure_sum.state import PhoneState
from fedcaptor.client.secure_sum.steps import Party, Random, Step, Values
from fedcaptor.common.errors import PrivacyError, WireError
from fedcaptor.common.secure import messages
from fedcaptor.common.secure.terms import Terms

_STEPS: tuple[tuple[type[messages.Message], Callable[[Party, PhoneState, bytes, Values], Step]], ...] = (
    (messages.Start, steps.advertise),
    (messages.Roster, steps.choose),
    (messages.Neighbours, steps.share),
    (messages.Inbox, steps.mask),
    (messages.Survivors, steps.endorse),
    (messages.Endorsements, steps.reveal),
)


class PhoneSum:
    """Answer the six requests of one sum in order, each once: a repeated request gets the stored reply, another one for
    an answered step is declined.

    `identity`: the phone's lasting signature key. `random(n)`: n secret bytes. `enrolled`, if given, tells whether an
    identity is that of a known phone; then neighbours' signatures on their keys are checked too (without it they would
    prove nothing: whoever invents a phone invents its identity).
    There may be one `PhoneSum` for a digest, ever: a vector masked again for another list would be a second sum. So
    `to_bytes()` must be stored before each reply is sent.
    """

    def __init__(
        self,
        terms: Terms,
        identity: Ed25519PrivateKey,
        random: Random = os.urandom,
        enrolled: Callable[[bytes], bool] | None = None,
        stored: bytes | None = None,
    ) -> None:
        """Begin a sum, or go on from `stored`, which `to_bytes` gave.

        Raises StateError when that is damaged or of other terms.
        """
        self._party = Party(terms, identity, random, enrolled)
        self._state = PhoneState.new(terms.binding) if stored is None else PhoneState.from_bytes(stored, terms.binding)

    @property
    def answered(self) -> int:
        """Return how many requests were answered so far, 0 to 6."""
        return len(self._state.replies)

    def to_bytes(self) -> bytes:
        """Encode all that is needed to go on after the process ends; it holds secrets."""
        return self._state.to_bytes()

    def answer(self, request: bytes, values: Values) -> bytes:
        """Return the reply to a request. `values()` gives uint32 [length] below 2**bits, when the vector is masked.

        Raises WireError on a malformed or untimely request, PrivacyError where an answer would break a promise; both
        leave everything as it was.
        """
        kind, digest, state = messages.kind_of(request), hashlib.sha256(request).digest(), self._state
        step = next((i for i, (message, _) in enumerate(_STEPS) if kind == message.KIND), len(_STEPS))
        if step < self.answered:
            if digest != state.requests[step].tobytes():
                raise PrivacyError(f"secure sum: step {step + 1} was answered, for another request: decline")
            return state.replies[step]
        if step > self.answered or step == len(_STEPS):
            raise WireError("wrong_kind", f"a secure sum's message of kind {kind}, now is step {self.answered + 1}")
        state, reply = _STEPS[step][1](self._party, state, request, values)
        requests = np.concatenate([state.requests, np.frombuffer(digest, np.uint8)[None]])
        self._state = replace(state, requests=requests, replies=(*state.replies, reply))
        return reply
