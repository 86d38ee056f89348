"""The noise of a sum computed from its definition, without the sampler and without the accounting."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Mass = NDArray[np.float64]


def gaussian_mass(sigma2: float) -> Mass:
    """Probabilities of a discrete Gaussian at −h … h; what lies outside is below exp(-800)."""
    half = math.ceil(40 * math.sqrt(sigma2))
    x = np.arange(-half, half + 1)
    mass = np.exp(-(x**2) / (2 * sigma2))
    return mass / mass.sum()


def sum_mass(sigma2: float, shares: int) -> Mass:
    """Probabilities of the sum of `shares` of them, symmetric about the middle entry."""
    one, total = gaussian_mass(sigma2), np.ones(1)
    for _ in range(shares):
        total = np.convolve(total, one)  # sums of positive numbers: exact to rounding in the tails too
    return total


def shifted(mass: Mass, by: int) -> tuple[Mass, Mass]:
    """The mass and itself moved by `by` integers, on one support."""
    none = np.zeros(by)
    return np.concatenate([mass, none]), np.concatenate([none, mass])


def renyi(mass: Mass, by: int, order: float) -> float:
    """Rényi divergence of `order` between a mass and itself moved by `by`."""
    p, q = shifted(mass, by)
    both = (p > 0) & (q > 0)
    return float(np.log(np.exp(order * np.log(p[both]) + (1 - order) * np.log(q[both])).sum()) / (order - 1))


def delta_at(mass: Mass, by: int, epsilon: float) -> float:
    """The least δ for which a mass and itself moved by `by` are (ε, δ)-indistinguishable."""
    p, q = shifted(mass, by)
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum())
