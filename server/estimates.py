"""Private estimates with their errors: what the noise of a sum, which is known, does to the figures made from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedcaptor.common.arrays import Floats
from fedcaptor.common.statistics import OUTCOME_FIGURES

LEAST = 2.0
"""Standard deviations that a number of phones must be above zero before anything is divided by it."""


@dataclass(frozen=True)
class Estimate:
    """Give a private estimate and the standard deviation of its noise."""

    value: float
    stddev: float


def fleet_phones(sums: Floats, deviation: float) -> Estimate:
    """Estimate the phones that reported an outcome, from sums [K, figures] with noise of `deviation` in each entry."""
    return Estimate(float(sums[:, 0].sum()), deviation * math.sqrt(len(sums)))


def fleet_ratio(sums: Floats, deviation: float, weights: Mapping[str, float], quantum: float = 0.0) -> Estimate | None:
    """Estimate the mean over phones of a weighted sum of `OUTCOME_FIGURES`, limited to what such figures can be.

    With A the weighted figures' total and B the phones, both over all K clusters, the first-order (delta) method gives
    var(A/B) = K·deviation²·(Σ weights² + (A/B)²) / B². Phones round towards zero to multiples of `quantum`, half of one
    on average, which is added in quadrature: it does not shrink with more phones. Returns None where noise alone could
    make up the phones: the error of the ratio is unknown then.
    """
    phones = fleet_phones(sums, deviation)
    if phones.value < max(1.0, LEAST * phones.stddev):
        return None
    factors = np.array([weights.get(name, 0.0) for name in OUTCOME_FIGURES])
    ratio = float(sums.sum(0) @ factors) / phones.value
    spread = math.sqrt(float(factors @ factors) + ratio**2)
    rounding = quantum / 2 * float(np.abs(factors).sum())
    error = math.hypot(phones.stddev * spread / phones.value, rounding)
    return Estimate(min(max(ratio, 0.0), float(factors.sum())), error)
