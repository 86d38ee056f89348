"""Encode and decode sums over a cohort: phones add noise in shares, entries are integers modulo 2**bits.

Source of the noise: Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning
with Secure Aggregation", ICML 2021. A sum is either rotated and rounded as there, which suits long and dense vectors,
or truncated towards zero, which suits short and sparse ones: truncation never raises the norm.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.noise import discrete_gaussian
from fedcaptor.common.privacy.rotation import block, rotate, rotate_back, rounded, rounded_norm

MIN_COHORT = 20
MIN_BITS, MAX_BITS = 8, 32
MAX_WRAP = 2.0**-40
"""Largest probability that a sum of honest replies wraps around in any entry."""
MAX_LENGTH = 1 << 24


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise PrivacyError(message)


@dataclass(frozen=True)
class SumSpec:
    """Specify what a phone is asked to add to one sum; both sides check it. Raises PrivacyError when it is not safe.

    `length`: entries. `clip`: joint L2 bound of one phone's vector, in its own units. `scale`: quanta per unit.
    `noise_multiplier`: standard deviation of the total noise over `clip`, reached with `min_survivors` shares;
    0 switches it off. `cohort`: phones asked. `min_survivors`: fewest phones whose share is in the sum.
    `min_cohort`: fewest replies that may be published; at least 20 unless `small_cohorts` (testing) is set.
    `rotated`: entries are spread by a public random rotation and rounded at random, not truncated.
    """

    name: str
    length: int
    clip: float
    scale: float
    noise_multiplier: float
    cohort: int
    min_survivors: int
    min_cohort: int = 50
    bits: int = 32
    small_cohorts: bool = False
    rotated: bool = False

    def __post_init__(self) -> None:
        floor = 1 if self.small_cohorts else MIN_COHORT
        _require(bool(self.name), "sum name is empty; give the sum a name")
        _require(
            1 <= self.length <= MAX_LENGTH,
            f"sum {self.name}: length {self.length} is outside 1 to {MAX_LENGTH}; split the sum",
        )
        _require(
            MIN_BITS <= self.bits <= MAX_BITS,
            f"sum {self.name}: bits {self.bits} is outside {MIN_BITS} to {MAX_BITS}; use {MAX_BITS}",
        )
        for field in ("clip", "scale"):
            value = getattr(self, field)
            _require(
                math.isfinite(value) and value > 0,
                f"sum {self.name}: {field} {value} must be above 0 and finite; set a positive {field}",
            )
        _require(
            math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0,
            f"sum {self.name}: noise_multiplier {self.noise_multiplier} must be finite and at least 0; calibrate it",
        )
        _require(
            self.min_cohort >= floor,
            f"sum {self.name}: min_cohort {self.min_cohort} is below {floor}; raise it (testing.small_cohorts lifts "
            "the bound in tests)",
        )
        _require(
            self.cohort >= self.min_cohort,
            f"sum {self.name}: cohort {self.cohort} is below min_cohort {self.min_cohort}; ask more phones",
        )
        _require(
            1 <= self.min_survivors <= self.cohort,
            f"sum {self.name}: min_survivors {self.min_survivors} is outside 1 to cohort {self.cohort}; set it inside",
        )
        _require(
            self.wrap_probability <= MAX_WRAP,
            f"sum {self.name}: {self.bits} bits could wrap around, {self.least_bits} cannot; raise bits, or lower "
            f"scale to {self.scale * 2.0 ** (self.bits - self.least_bits):.4g}",
        )

    @property
    def sensitivity(self) -> float:
        """Return the joint L2 bound of one encoded vector before noise, in quanta."""
        return rounded_norm(self.scale * self.clip, self.length) if self.rotated else self.scale * self.clip

    @property
    def wrap_probability(self) -> float:
        """Bound the probability that any entry of a sum of `cohort` honest replies leaves its bits."""
        return self._wrap_probability(self.bits)

    @property
    def least_bits(self) -> int:
        """Return the fewest bits with which the sum wraps around with probability 2**-40 at most; may exceed 32."""
        return next(bits for bits in range(MIN_BITS, 1024) if self._wrap_probability(bits) <= MAX_WRAP)

    def _wrap_probability(self, bits: int) -> float:
        """Bound the probability that any entry leaves so many `bits`.

        Discrete Gaussians are sub-Gaussian, and so are the entries of the rotated sum, whose norm is cohort × clip at
        most; rounding moves an entry by less than one quantum a phone. Without rotation, and at worst with it, all of
        every clipped vector is in one entry.
        """
        room, noise = 2.0 ** (bits - 1) - 1, self.cohort * self.share_variance
        worst = _tail(room - self.cohort * self.sensitivity, noise)
        if self.rotated:
            spread = (self.cohort * self.scale * self.clip) ** 2 / block(self.length)
            worst = min(worst, _tail(room - self.cohort, spread + noise))
        return min(1.0, self.length * worst)

    @property
    def sigma(self) -> float:
        """Return the standard deviation of the noise of `min_survivors` shares, in quanta."""
        return self.noise_multiplier * self.scale * self.clip

    @property
    def share_variance(self) -> float:
        """Return the variance parameter of one phone's share, in squared quanta."""
        return self.sigma**2 / self.min_survivors

    @property
    def deviation(self) -> float:
        """Return the standard deviation of one entry of the sum of the whole cohort, in the units of `clip`."""
        return self.noise_multiplier * self.clip * math.sqrt(self.cohort / self.min_survivors)

    @property
    def digest(self) -> str:
        """Return the SHA-256 (hex) of every field: a spec that differs in anything is another request."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def _tail(room: float, variance: float) -> float:
    """Bound P(|X| > room) for a sub-Gaussian X."""
    if room < 0:
        return 1.0
    return 2 * math.exp(-(room**2) / (2 * variance)) if variance else 0.0


def encode(vector: NDArray[np.floating], spec: SumSpec, rng: np.random.Generator) -> NDArray[np.uint32]:
    """Encode one phone's reply, uint32 [length]: its vector in quanta with its share of the noise.

    Raises PrivacyError as `quantised` does.
    """
    quanta = quantised(vector, spec, rng)
    return wrapped(quanta + discrete_gaussian(spec.share_variance, spec.length, rng), spec)


def wrapped(total: NDArray[np.int64], spec: SumSpec) -> NDArray[np.uint32]:
    """Reduce `total` [length] modulo 2**bits."""
    return (total & np.int64(2**spec.bits - 1)).astype(np.uint32)


def quantised(vector: NDArray[np.floating], spec: SumSpec, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return one phone's vector before noise, int64 [length]: clipped, rotated where the spec says so, in quanta.

    `vector` is [length] in units of `clip`. Raises PrivacyError on a wrong shape or a value that is not finite.
    The norm in quanta is at most `spec.sensitivity`.
    """
    _require(
        vector.shape == (spec.length,),
        f"sum {spec.name}: vector of shape {vector.shape}, expected ({spec.length},); rebuild it from the request",
    )
    x = vector.astype(np.float64)
    _require(
        bool(np.isfinite(x).all()),
        f"sum {spec.name}: {int((~np.isfinite(x)).sum())} values are not finite, 0 allowed; leave this report out",
    )
    peak = float(np.abs(x).max())
    if peak > spec.clip:  # first by the largest entry, so that the norm cannot overflow
        x = x / peak * spec.clip
    norm = float(np.linalg.norm(x))
    if norm > spec.clip:
        x *= spec.clip / norm
    if spec.rotated:
        return rounded(rotate(x, spec.digest) * spec.scale, spec.sensitivity, rng)
    return _truncated(x * spec.scale, spec.sensitivity)


def _truncated(x: NDArray[np.float64], bound: float) -> NDArray[np.int64]:
    quanta = np.trunc(x)
    if float(quanta @ quanta) > bound**2:  # float rounding alone
        quanta = np.trunc(quanta * (1 - 1e-9))
    return quanta.astype(np.int64)


def decode(total: NDArray[np.uint32], spec: SumSpec) -> NDArray[np.float64]:
    """Decode a sum of replies modulo 2**bits, uint32 [length], to float64 [length] in the units of `clip`."""
    half = np.int64(2 ** (spec.bits - 1))
    mask = np.int64(2**spec.bits - 1)
    signed = ((total.astype(np.int64) + half) & mask) - half
    values = signed / spec.scale
    return rotate_back(values, spec.digest) if spec.rotated else values
