"""Choose the probabilities of local answers that estimate best at a given ε; phones check what they are asked."""

from __future__ import annotations

import math

from scipy.optimize import minimize_scalar
from scipy.special import expit

from fedcaptor.common.privacy.local import GRID, LocalSpec, pairs_of


def best_local_spec(classes: int, epsilon: float) -> LocalSpec:
    """Return the answer over `classes` classes with the least total variance that costs no more than `epsilon`.

    Minimises equation 5 of Wang et al. (USENIX Security 2017) with the pair's own bit counted too, which matters for
    few classes. Raises PrivacyError as `LocalSpec` does.
    """

    def variance(logit: float) -> float:
        p, q = expit(logit + epsilon), expit(logit)
        return float((p * (1 - p) + (pairs_of(classes) - 1) * q * (1 - q)) / (p - q) ** 2)

    logit = minimize_scalar(variance, bounds=(-epsilon, -epsilon / 2), method="bounded").x
    present = math.floor(expit(logit + epsilon) / GRID) * GRID
    return LocalSpec(classes, present, math.ceil(expit(logit) / GRID) * GRID)
