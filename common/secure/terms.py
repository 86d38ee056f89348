"""Define what both sides agree on before the first message of one secure sum."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property

from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.sums import SumSpec

PROTOCOL = b"fedcaptor secure sum 2"
"""Name and version: part of every key's derivation and of every signature."""
MAX_COHORT = 1 << 16
"""Most phones in one sum."""


@dataclass(frozen=True)
class Terms:
    """Hold the terms of a sum of `length` entries modulo 2**`bits`.

    `digest` (64 hex) names the sum: run, round, cohort, request and spec.

    `cohort`: most phones. `min_cohort`: fewest on the list of keys, and fewest survivors. `min_survivors`: fewest
    phones whose vector, noise share included, is in the sum. `dropout`: share of phones that may be lost at any point.
    `corrupted`: share of phones that may side with the server, made-up ones included. The sum fails for too few
    neighbours with probability 2**-`correctness`, its secrecy with 2**-`security`, each over the whole cohort.
    A phone takes `corrupted`, `security` and the minima from its own configuration, not from the server's word.
    Raises PrivacyError on a value out of bounds.
    """

    digest: str
    length: int
    bits: int
    cohort: int
    min_cohort: int
    min_survivors: int
    dropout: float
    corrupted: float
    security: int = 40
    correctness: int = 20

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.digest):
            raise PrivacyError("secure sum: the digest must be 64 hexadecimal digits: pass SHA-256 of the request")
        for name, low, high in (
            ("length", 1, 1 << 24),
            ("bits", 8, 32),
            ("cohort", 2, MAX_COHORT),
            ("min_cohort", 1, self.cohort),
            ("min_survivors", 1, self.cohort),
            ("dropout", 0, 0.5),
            ("corrupted", 0, 0.5),
            ("security", 20, 256),
            ("correctness", 1, 256),
        ):
            if not low <= getattr(self, name) <= high:
                raise PrivacyError(
                    f"secure sum: {name} {getattr(self, name)} is outside {low} to {high}: set it inside"
                )

    @classmethod
    def of(cls, spec: SumSpec, digest: str, dropout: float, corrupted: float) -> Terms:
        """Make the terms of the sum that `spec` describes; `digest` must cover the spec's."""
        return cls(digest, spec.length, spec.bits, spec.cohort, spec.min_cohort, spec.min_survivors, dropout, corrupted)

    @cached_property
    def binding(self) -> bytes:
        """Return the SHA-256 of the protocol and of every field: other terms give other keys."""
        return hashlib.sha256(PROTOCOL + json.dumps(asdict(self), sort_keys=True).encode()).digest()

    @property
    def fewest(self) -> int:
        """Return the fewest survivors that a sum is published for."""
        return max(self.min_cohort, self.min_survivors)

    def require_list(self, phones: int) -> None:
        """Raise PrivacyError unless a list of `phones` keys may be used."""
        if not self.fewest <= phones <= self.cohort:
            raise PrivacyError(
                f"secure sum: {phones} phones on the list of keys, must be {self.fewest} to {self.cohort}: "
                "ask more phones or wait longer"
            )

    def require_survivors(self, phones: int) -> None:
        """Raise PrivacyError unless the sum of `phones` survivors may be unmasked."""
        if phones < self.fewest:
            raise PrivacyError(
                f"secure sum: {phones} survivors, at least {self.fewest} needed: wait longer or ask a larger cohort"
            )
