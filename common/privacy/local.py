"""One answer that a phone protects by itself: two classes drawn from its usage, in bits that are flipped at random.

The unordered pair is one of C·(C+1)/2, sent as unary encoding with optimised probabilities (Wang et al., USENIX
Security 2017, there for many values; here for their number). Drawn with return, a pair is an unbiased sample of u·uᵀ:
classes that are met together are seen, which one class alone would not show. Asked again, the same bits are sent, as in
RAPPOR (Erlingsson et al., CCS 2014): who stores them is the phone.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.noise import bernoulli, uniform

MAX_CLASSES = 1024
GRID = 2.0**-48
"""Probabilities are multiples of it: 53 random bits then have them exactly, and ε is that of what is drawn."""

Bits = NDArray[np.uint8]


@dataclass(frozen=True)
class LocalSpec:
    """How an answer is drawn: over `classes` classes, a bit is one with probability `present` where it is the pair's
    own and `absent` elsewhere. Raises PrivacyError on probabilities that protect nothing or tell nothing.
    """

    classes: int
    present: float
    absent: float

    def __post_init__(self) -> None:
        if not 2 <= self.classes <= MAX_CLASSES:
            raise PrivacyError(f"classes is {self.classes}, must lie in 2..{MAX_CLASSES}: use masked sums")
        for name in ("present", "absent"):
            if not (getattr(self, name) / GRID).is_integer():
                raise PrivacyError(f"{name} is {getattr(self, name)}, must be a multiple of 2**-48: round it")
        if not 0 < self.absent < self.present < 1:
            raise PrivacyError(
                f"a bit is one with probability {self.present} or {self.absent}, must be 0 < absent < present < 1"
            )

    @property
    def name(self) -> str:
        """As sums are named: it is asked in the first round."""
        return "1-usage-0"

    @property
    def length(self) -> int:
        """Bits of an answer, in the order of `np.triu_indices`."""
        return pairs_of(self.classes)

    @property
    def epsilon(self) -> float:
        """ε, δ = 0, between any two answers: two pairs differ in two bits, a pair and none (nothing met) in one."""
        return math.log(self.present / self.absent) + math.log((1 - self.absent) / (1 - self.present))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of every field."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def draw(self, usage: NDArray[np.float64], rng: np.random.Generator) -> Bits:
        """A fresh answer, packed: to be stored before it is sent. `usage` [C]; all zeros: nothing was met."""
        own = np.zeros(self.length, dtype=bool)
        if usage.sum() > 0:
            edges = np.cumsum(usage) / np.cumsum(usage)[-1]
            i, j = np.sort(np.searchsorted(edges, uniform(2, rng), side="right"))
            own[i * self.classes - i * (i - 1) // 2 + j - i] = True
        return np.packbits(bernoulli(np.where(own, self.present, self.absent), rng))

    def check(self, answer: Bits) -> None:
        """Raise PrivacyError unless it is so many packed bits."""
        if answer.dtype != np.uint8 or answer.shape != (-(-self.length // 8),):
            raise PrivacyError(f"the answer is {answer.dtype} {answer.shape}, must be {self.length} packed bits")
        if np.unpackbits(answer[-1:])[(self.length - 1) % 8 + 1 :].any():
            raise PrivacyError(f"the answer has ones behind its {self.length} bits: clear them")

    def cooccurrence(self, ones: NDArray[np.float64], phones: int) -> NDArray[np.float64]:
        """Unbiased sum of `statistics.cooccurrence` vectors [length] from the `ones` [length] of so many answers."""
        pairs = (ones - phones * self.absent) / (self.present - self.absent)
        rows, columns = np.triu_indices(self.classes)
        return np.where(rows == columns, 1.0, math.sqrt(0.5)) * pairs

    @property
    def deviation(self) -> float:
        """Standard deviation of one phone's share of a class as its answer shows it, by flipped bits alone: one bit
        counts whole, the C − 1 of other pairs with this class half. Nearly all bits are absent ones.
        """
        weight = 1 + (self.classes - 1) / 4
        return math.sqrt(weight * self.absent * (1 - self.absent)) / (self.present - self.absent)

    def share_deviation(self, phones: float) -> float:
        """Standard deviation of a class's mean share over so many phones, the draw of two classes counted and all
        shares alike.
        """
        drawn = (1 - 1 / self.classes) / self.classes / 2
        return math.sqrt((self.deviation**2 + drawn) / phones)


def pairs_of(classes: int) -> int:
    """How many unordered pairs of classes there are, a class with itself included: bits of an answer."""
    return classes * (classes + 1) // 2
