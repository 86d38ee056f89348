"""Compute the (ε, δ) of composed sums, at the level of a phone (one phone's reports replaced by zeros).

Each sum is zero-concentrated differentially private (zCDP) by Kairouz, Liu and Steinke, ICML 2021: the sum of n shares
is within tau of one discrete Gaussian. ρ adds up over sums. It is converted by Rényi divergences, as
`rdp.RdpAccountant` of dp-accounting 0.6 does, to the same bit: budgets are calibrated to be met exactly. Phones price
their answers with it, so it needs numpy alone; the tests hold it against the library. More shares than counted here are
further independent noise, so they never raise the figure; nothing is credited for subsampling.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedcaptor.common.arrays import Floats
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.sums import SumSpec

_ORDERS = 1 + np.geomspace(1e-3, 1e6, 2000)
_STABLE_ORDER = 1.01  # below it the conversion loses its digits
_MIN_SHARE_DEVIATION = 0.5  # the theorem on sums of discrete Gaussians needs it
_MAX_MULTIPLIER = 1e9

PERIOD_DAYS = 90
"""Privacy budget renewal: an answer counts against a phone's ε for so many days."""


@lru_cache(maxsize=64)  # sums of one kind have it in common, and it takes as long as there are phones
def share_gap(share_variance: float, shares: int) -> float:
    """Return tau: how far (log ratio) the sum of `shares` discrete Gaussians of that variance is from a single one."""
    k = np.arange(1, shares, dtype=np.float64)
    return float(10 * np.exp(-2 * math.pi**2 * share_variance * k / (k + 1)).sum())


def sum_zcdp(spec: SumSpec, dishonest: float = 0.0) -> float:
    """Return the rho of one sum when `min_survivors` reply and a fraction `dishonest` of the cohort adds no noise.

    Infinite with the noise off or no honest share left. Raises PrivacyError when `dishonest` is outside 0 to 1 or
    the share's standard deviation is below half a quantum.
    """
    return _zcdp(spec, spec.noise_multiplier, dishonest)


def epsilon(specs: Iterable[SumSpec], delta: float, dishonest: float = 0.0) -> float:
    """Return the ε at `delta` of answering every sum in `specs` once; 0 for none, infinite when one has no noise.

    Raises PrivacyError when `delta` is not strictly between 0 and 1, and as `sum_zcdp` does.
    """
    return to_epsilon((sum_zcdp(spec, dishonest) for spec in specs), delta)


def noise_multiplier(
    target_epsilon: float, delta: float, sums: int | Sequence[SumSpec], dishonest: float = 0.0
) -> float:
    """Find the least noise multiplier, one for all sums, whose composed ε at `delta` is at most the target.

    `sums` is the specs themselves (their own noise_multiplier is ignored; tau and wrap-around are checked), or a
    number of sums for a first plan, which leaves tau, a small term, and dishonest phones out. Raises PrivacyError when
    the target cannot be met.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise PrivacyError(f"target epsilon {target_epsilon} must be above 0 and finite; set a positive one")
    if isinstance(sums, int):
        if sums < 1:
            raise PrivacyError(f"{sums} sums to calibrate, at least 1 needed; plan a sum")
        if dishonest:
            raise PrivacyError("dishonest phones cannot be counted from a number of sums; pass the specs")
    elif not sums:
        raise PrivacyError("0 sums to calibrate, at least 1 needed; plan a sum")

    def reached(multiplier: float) -> float:
        if isinstance(sums, int):
            return to_epsilon([sums / (2 * multiplier**2)], delta)
        return to_epsilon((_zcdp(s, multiplier, dishonest, strict=False) for s in sums), delta)

    low, high = 0.0, 1.0
    while reached(high) > target_epsilon:
        low, high = high, 2 * high
        if high > _MAX_MULTIPLIER:
            raise PrivacyError(
                f"epsilon {target_epsilon} at delta {delta} is out of reach below a noise multiplier of "
                f"{_MAX_MULTIPLIER:g}; raise the target, delta or the share of honest phones"
            )
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) > target_epsilon else (low, middle)
    if not isinstance(sums, int):
        for spec in sums:
            replace(spec, noise_multiplier=high)  # refuses noise that could wrap around
    return high


def _zcdp(spec: SumSpec, multiplier: float, dishonest: float, strict: bool = True) -> float:
    if not 0 <= dishonest < 1:
        raise PrivacyError(f"dishonest fraction {dishonest} is outside 0 to 1 (excluded); change it")
    honest = spec.min_survivors - math.ceil(dishonest * spec.cohort)
    if multiplier == 0 or honest < 1:
        return math.inf
    sigma = multiplier * spec.scale * spec.clip
    share = sigma**2 / spec.min_survivors
    if math.sqrt(share) < _MIN_SHARE_DEVIATION:
        if not strict:
            return math.inf
        raise PrivacyError(
            f"sum {spec.name}: a phone's noise of {math.sqrt(share):.3g} quanta is below {_MIN_SHARE_DEVIATION}; "
            f"raise scale above {spec.scale * _MIN_SHARE_DEVIATION / math.sqrt(share):.4g}"
        )
    tau = share_gap(share, honest)
    ratio = spec.sensitivity / math.sqrt(share * honest)
    concentrated = min(math.sqrt(ratio**2 + tau * spec.length / 2), ratio + tau * math.sqrt(spec.length))
    return concentrated**2 / 2


def to_epsilon(rhos: Iterable[float], delta: float) -> float:
    """Return the ε at `delta` of zCDP charges composed; 0 for none, infinite when one is.

    At order a, ρ bounds the Rényi divergence by a·ρ, and that gives ε by Canonne, Kamath and Steinke 2020,
    proposition 12; the least over all orders holds. Raises PrivacyError when `delta` is not strictly between 0 and 1.
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta {delta} is outside 0 to 1 (both excluded); set it below 1 / number of phones")
    parts = list(rhos)
    if not parts:
        return 0.0
    if any(math.isinf(rho) for rho in parts):
        return math.inf
    divergence = np.zeros_like(_ORDERS)
    for rho in parts:  # one after the other: another order of additions has other last digits
        divergence += rho * _ORDERS
    found = divergence + _LOG_KEPT - _log_terms(delta)
    found[_ORDERS <= _STABLE_ORDER] = math.inf
    found[_nearly_equal(divergence, delta)] = 0.0
    return max(0.0, float(found.min()))


def _each(function: Callable[[float], float], values: Floats) -> Floats:
    """Apply a function of Python's `math` to each value.

    The last digit of numpy's vector instructions may be rounded otherwise.
    """
    return np.array([function(value) for value in values.tolist()])


_LOG_KEPT = _each(lambda order: math.log1p(-1 / order), _ORDERS)


@lru_cache(maxsize=16)
def _log_terms(delta: float) -> Floats:
    return _each(lambda order: math.log(delta * order), _ORDERS) / (_ORDERS - 1)


def _nearly_equal(divergence: Floats, delta: float) -> NDArray[np.bool_]:
    """Tell at which orders the total variation distance, by the divergence alone, is below `delta`: ε is 0 there."""
    return np.array([delta**2 + math.expm1(-value) > 0 for value in divergence.tolist()])
