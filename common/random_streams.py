"""Name the random streams of a run, so that no two of them draw equal values.

A numbered stream is numpy's default generator, seeded with the words [seed of the run, number of the stream, keys …].
`numpy.random.SeedSequence` pads short seeds with zeros: [s, 4] and [s, 4, 0] give equal draws. Therefore a number
stands for one name alone, and each name has a fixed number of keys.

Some streams have no number, because their keys tell them apart: the sample of phones that a sum asks, a simulated
phone's noise and its masks are keyed by 60 bits or more of a SHA-256 digest (`stream_of_digest`). A function that takes
a `seed` of its own, such as the tuning of a network or the painting of a filter, documents what it draws from it.

One stream has neither a number nor a digest: the server draws the reference images of a cluster from [seed, numbers of
its classes …] (`server/planning.py`). A cluster of class 1 alone therefore shares its draws with `HABITS`. Published
figures rest on it and nothing relates the two, so it stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, unique

import numpy as np

from fedcaptor.common.errors import ConfigError


@unique
class Stream(Enum):
    """Name each stream with its number and its keys. New streams take new numbers; old ones keep theirs."""

    HABITS = 1, ()
    """Which classes simulated owners meet, and how often (`simulations/habits.py`)."""
    IMAGES = 2, ("part", "round")
    """Which images an owner meets, for laws that draw them by class (`simulations/population.py`)."""
    CORRECTIONS = 3, ()
    """Which predictions owners correct."""
    TIER = 4, ("phone",)
    """The device tier of a simulated phone (`common/tiers.py`)."""
    OWN_IMAGES = 5, ("part",)
    """The order in which an owner meets images that belong to that owner alone."""
    PARTITION = 6, ()
    """The order of the images that a partitioner divides (`simulations/owners.py`)."""
    REFERENCE = 7, ()
    """The reference images that the server offers to all phones (`server/cluster_submodels.py`)."""
    DOMAIN = 8, ()
    """The reference images that the server adapts the base model with (`server/adapt.py`)."""
    LOOK = 9, ("phone",)
    """The look of a simulated phone's photos (`simulations/looks.py`)."""
    CORRUPTIONS = 10, ("look",)
    """The noise in the photos of a look."""
    SUMMED_NOISE = 11, ()
    """The noise of whole sums that are drawn at once (`benchmarks/local_privacy.py`)."""
    LOCAL_ANSWERS = 12, ()
    """The randomised answers of all phones, drawn one after the other (`benchmarks/local_privacy.py`)."""
    MALICIOUS = 21, ()
    """Which phones are malicious (`benchmarks/malicious.py`)."""
    LOCAL_TRAINING = 22, ("round", "phone")
    """The order of a phone's images in one round of federated training (`benchmarks/heterofl.py`)."""

    def __init__(self, number: int, keys: tuple[str, ...]) -> None:
        self.number, self.keys = number, keys


def require_seed(seed: int) -> None:
    """Check a seed that a user gives; raises ConfigError outside of what all generators take."""
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed is {seed}, must lie in 0..{2**63 - 1}: give another")


def stream(seed: int, name: Stream, *keys: int) -> np.random.Generator:
    """Return the generator of one stream of the run with `seed`.

    Raises ValueError unless every key of the stream is given.
    """
    if len(keys) != len(name.keys):
        raise ValueError(f"stream {name.name} has the keys {name.keys}, {len(keys)} were given: give each of them")
    return np.random.default_rng([seed, name.number, *keys])


def stream_of_digest(seed: Sequence[int], digest: str, digits: int = 16) -> np.random.Generator:
    """Return the generator seeded with the words `seed` and the first `digits` hexadecimal digits of a digest."""
    return np.random.default_rng([*seed, int(digest[:digits], 16)])
