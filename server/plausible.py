"""Check that honest phones can have made a sum: clipped vectors, mostly without negative entries, and noise shares.

Noise: discrete Gaussians are sub-Gaussian, and so is their sum in every direction. Norm: Hsu, Kakade and Zhang, "A tail
inequality for quadratic forms of subgaussian random vectors", 2012, theorem 1. Entries: a union bound.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.sums import SumSpec

P_FALSE = 2.0**-40
"""Largest probability that a sum of honest replies is discarded."""


@dataclass(frozen=True)
class Bounds:
    """Bound a decoded sum, in the units of `clip`: its L2 norm, its least and its largest entry."""

    norm: float
    least: float
    largest: float


def bounds(spec: SumSpec, replies: int, signed: bool = False) -> Bounds:
    """Return bounds that a sum of `replies` honest vectors exceeds with probability `P_FALSE` at most.

    `signed`: their entries may be negative.
    """
    deviation, d = math.sqrt(replies * spec.share_variance), spec.length
    t = math.log(2 / P_FALSE)  # half for the norm, half for the entries
    tail = deviation * math.sqrt(d + 2 * math.sqrt(d * t) + 2 * t)
    entry = deviation * math.sqrt(2 * (t + math.log(2 * d)))
    signal = replies * spec.sensitivity
    rounding = replies * math.sqrt(d) if spec.rotated else 0.0  # an entry of 0 is moved by its phone's rounding
    slack = 1e-9 * signal / spec.scale  # float rounding in decoding
    parts = signal + tail, -(signal if signed else rounding) - entry, signal + entry
    norm, least, largest = (x / spec.scale for x in parts)
    return Bounds(norm + slack, least - slack, largest + slack)


def check(total: NDArray[np.float64], spec: SumSpec, replies: int, signed: bool = False) -> None:
    """Raise PrivacyError when honest phones cannot have made the decoded sum `total` [length]; as `bounds`."""
    allowed = bounds(spec, replies, signed)
    norm, least, largest = float(np.linalg.norm(total)), float(total.min()), float(total.max())
    for what, value, bound, holds in (
        ("norm", norm, allowed.norm, norm <= allowed.norm),
        ("least entry", least, allowed.least, least >= allowed.least),
        ("largest entry", largest, allowed.largest, largest <= allowed.largest),
    ):
        if not holds:
            raise PrivacyError(
                f"sum {spec.name}: {what} {value:.6g} is beyond {bound:.6g}, which {replies} clipped replies cannot "
                "reach: the sum is discarded; ask another cohort, some phone here does not clip"
            )


def tolerated(phones: int) -> float:
    """Return the largest fraction f of malicious clients with (1 − f)^phones ≥ ½.

    A median over cohorts of `phones` withstands fractions below it, as more than half of the cohorts must hold none.
    """
    return float(1 - 0.5 ** (1 / phones))
