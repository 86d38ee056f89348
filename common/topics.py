"""Preference topics: distributions over classes, of which every owner's usage is a mixture.

An owner has several interests, so one nearest centroid says little where classes are many. Topics are those of
probabilistic latent semantic analysis (Hofmann, UAI 1999) with owners for documents and classes for words. A phone fits
its own mixture by itself; what it adds to a private sum is its usage, shared out among the topics.
"""

from __future__ import annotations

import numpy as np

from fedcaptor.common.arrays import Array, Floats
from fedcaptor.common.distances import class_posterior

_STEPS = 60
_LEAST = 1e-9  # share of a class in a topic: one that no topic has is of all alike


def mixture(topics: Array, counts: Floats, likelihoods: Floats | None = None) -> Floats:
    """Fit how much of each topic [K] an owner has by expectation maximisation: the likeliest distribution over topics.

    It takes the same time for every owner of as many images.

    Args:
        topics: Distributions over classes [K, C].
        counts: Of what was met by class [C]; nothing met at all gives equal parts.
        likelihoods: Of further images by class [N, C], up to a factor for each image.
    """
    seen, weight = np.asarray(topics, np.float64).T + _LEAST, counts
    if likelihoods is not None:
        seen, weight = np.concatenate([seen, likelihoods @ seen]), np.concatenate([counts, np.ones(len(likelihoods))])
    shares = np.full(seen.shape[1], 1 / seen.shape[1])
    for _ in range(_STEPS):
        parts = shares * (weight / (seen @ shares) @ seen)
        shares = parts / parts.sum() if parts.any() else shares
    return shares


def shared_out(usage: Floats, topics: Array) -> Floats:
    """Share each class's part of a usage [C] out among the topics it was met for: [K, C], which adds up to the usage.

    It is the expectation step for one owner; the sum over all owners, row by row, gives the next topics.
    """
    known = np.asarray(topics, np.float64).T + _LEAST
    return (usage[:, None] * class_posterior(known, mixture(topics, usage))).T
