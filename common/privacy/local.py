"""Draw an answer that a phone protects by itself: two classes of its usage, in bits that are flipped at random.

The unordered pair is one of C·(C+1)/2, sent as unary encoding with optimised probabilities (Wang et al., USENIX
Security 2017, there for many values; here for their number). Drawn with return, a pair is an unbiased sample of u·uᵀ:
it shows which classes are met together, which one class alone would not. A phone that is asked again sends the stored
bits, as in RAPPOR (Erlingsson et al., CCS 2014).
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
    """Describe how an answer is drawn: over `classes` classes, a bit is one with probability `present` where it is the
    pair's own and `absent` elsewhere. Raises PrivacyError on probabilities that protect nothing or tell nothing.
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
        """Return a name in the form of sums' names; the answer is asked for in the first round."""
        return "1-usage-0"

    @property
    def length(self) -> int:
        """Return the number of bits of an answer; they are in the order of `np.triu_indices`."""
        return pairs_of(self.classes)

    @property
    def epsilon(self) -> float:
        """Return ε at δ = 0 of any two answers: two pairs differ in two bits, a pair and none (nothing met) in one."""
        return math.log(self.present / self.absent) + math.log((1 - self.absent) / (1 - self.present))

    @property
    def digest(self) -> str:
        """Return the SHA-256 (hex) of every field."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def draw(self, usage: NDArray[np.float64], rng: np.random.Generator) -> Bits:
        """Draw a fresh answer, packed: store it before it is sent. `usage` [C]; all zeros: nothing was met."""
        own = np.zeros(self.length, dtype=bool)
        if usage.sum() > 0:
            edges = np.cumsum(usage) / np.cumsum(usage)[-1]
            i, j = np.sort(np.searchsorted(edges, uniform(2, rng), side="right"))
            own[i * self.classes - i * (i - 1) // 2 + j - i] = True
        return np.packbits(bernoulli(np.where(own, self.present, self.absent), rng))

    def check(self, answer: Bits) -> None:
        """Raise PrivacyError unless `answer` is `length` packed bits."""
        if answer.dtype != np.uint8 or answer.shape != (-(-self.length // 8),):
            raise PrivacyError(f"the answer is {answer.dtype} {answer.shape}, must be {self.length} packed bits")
        if np.unpackbits(answer[-1:])[(self.length - 1) % 8 + 1 :].any():
            raise PrivacyError(f"the answer has ones behind its {self.length} bits: clear them")

    def cooccurrence(self, ones: NDArray[np.float64], phones: int) -> NDArray[np.float64]:
        """Estimate the sum of `statistics.cooccurrence` vectors [length] from the `ones` [length] of so many answers.

        The estimate is unbiased.
        """
        pairs = (ones - phones * self.absent) / (self.present - self.absent)
        rows, columns = np.triu_indices(self.classes)
        return np.where(rows == columns, 1.0, math.sqrt(0.5)) * pairs

    @property
    def deviation(self) -> float:
        """Return the standard deviation of one phone's share of a class as its answer shows it, by flipped bits alone.

        One bit counts whole, the C − 1 of other pairs with this class half. Nearly all bits are absent ones.
        """
        weight = 1 + (self.classes - 1) / 4
        return math.sqrt(weight * self.absent * (1 - self.absent)) / (self.present - self.absent)

    def share_deviation(self, phones: float) -> float:
        """Return the standard deviation of a class's mean share over so many phones.

        The draw of two classes is counted, and all classes are taken to have equal shares.
        """
        drawn = (1 - 1 / self.classes) / self.classes / 2
        return math.sqrt((self.deviation**2 + drawn) / phones)


def pairs_of(classes: int) -> int:
    """Return how many unordered pairs of classes there are, a class with itself included: bits of an answer."""
    return classes * (classes + 1) // 2
