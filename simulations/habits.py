"""Laws by which simulated owners meet classes. Pure functions of a seed: they read and write no files."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Indices
from fedcaptor.common.config import Population as Settings
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.plugins import is_own, resolve
from fedcaptor.common.random_streams import Stream, stream

Shares = npt.NDArray[np.float64]
LEAST = 0.1
"""Least share of an own class, over an even share: a class that is never met would not be an own class."""
_RARE = 1e-3  # share of an owner's images below which a class of her interests is none that she meets


def shares_by_law(settings: Settings, classes: int, rounds: int, seed: int) -> Shares:
    """How often owners truly meet each class [rounds, phones, classes], by a law of this module or one's own. Raises
    ConfigError for shares of another form.
    """
    if not is_own(settings.law):
        return draw_habits(settings, classes, rounds, seed)
    law = resolve(settings.law, "population.law", "habits, zipf, dirichlet, interests, owners, partitioner")
    shares, shape = np.asarray(law(settings, classes, rounds, seed), np.float64), (rounds, settings.phones, classes)
    if shares.shape != shape or not (shares >= 0).all() or not np.allclose(shares.sum(-1), 1):
        raise ConfigError(
            f"population.law {settings.law!r} gave shares {shares.shape}, must be {shape} (rounds, phones, classes), "
            "not negative, each row summing to 1"
        )
    return shares


def draw_habits(settings: Settings, classes: int, rounds: int, seed: int) -> Shares:
    """How often owners truly meet each class [rounds, phones, classes], rows sum to one; an owner's own classes are
    those above zero. Laws `habits` and `zipf` (groups with favourites), `dirichlet` (one group of all), `interests`.
    """
    if settings.classes_max > classes:
        raise ConfigError(f"population.classes_max is {settings.classes_max}, the data has {classes} classes: lower it")
    rng = stream(seed, Stream.HABITS)
    draw = _interested if settings.law == "interests" else _class_shares
    weights = _interests(settings, classes, rng) if settings.law == "interests" else _weights(settings, classes, rng)
    group = rng.integers(len(weights), size=settings.phones)
    shares = np.empty((rounds, settings.phones, classes))
    now = draw(settings, weights, group, rng)
    for round in range(rounds):
        if settings.drift_round and round + 1 == settings.drift_round:
            moved = rng.random(settings.phones) < settings.drift_share
            group = np.where(moved, (group + 1) % len(weights), group)
            now = np.where(moved[:, None], draw(settings, weights, group, rng), now)
        shares[round] = now
    return shares


def _interests(settings: Settings, classes: int, rng: np.random.Generator) -> Shares:
    """How often each interest has each class [groups, classes]: `classes_max` of them, by rank; some are in several."""
    interests = np.zeros((settings.groups, classes))
    for row in interests:
        row[rng.permutation(classes)[: settings.classes_max]] = (
            np.arange(1, settings.classes_max + 1.0) ** -settings.exponent
        )
    return np.asarray(interests / interests.sum(1, keepdims=True))


def _interested(settings: Settings, interests: Shares, group: Indices, rng: np.random.Generator) -> Shares:
    """Draw class shares [phones, classes] of owners with two interests, one of them `group` [phones]: around the
    mixture of both, the closer the larger the concentration.
    """
    other = (group + rng.integers(1, max(len(interests), 2), len(group))) % len(interests)
    part = rng.beta(2, 2, (len(group), 1))
    mixed = part * interests[group] + (1 - part) * interests[other]
    drawn = rng.standard_gamma(settings.concentration * mixed)
    drawn = np.where(drawn > _RARE * drawn.sum(1, keepdims=True), drawn, 0.0)
    return np.asarray(drawn / drawn.sum(1, keepdims=True))


def _weights(settings: Settings, classes: int, rng: np.random.Generator) -> Shares:
    """How likely each group's owners take each class [groups, classes]."""
    favourites = _favourites(settings, classes, rng)
    weights = np.full((len(favourites), classes), (1 - settings.typical) / classes)
    for row, own in zip(weights, favourites, strict=True):
        row[own] += settings.typical / len(own)
    return np.asarray(np.maximum(weights, 1e-12))


def _favourites(settings: Settings, classes: int, rng: np.random.Generator) -> list[Indices]:
    """Favourite classes of each group, enough for the largest owner; a class comes again after all others have come."""
    if settings.law == "dirichlet":
        return [np.arange(classes)]
    size = min(classes, max(settings.classes_max, -(-classes // settings.groups)))
    left = np.concatenate([rng.permutation(classes) for _ in range(-(-settings.groups * size // classes) + 1)])
    favourites = []
    for _ in range(settings.groups):
        own: list[int] = []
        rest: list[int] = []
        for c in left:
            (own if len(own) < size and c not in own else rest).append(c)
        favourites.append(np.array(own))
        left = np.array(rest)
    return favourites


def _class_shares(settings: Settings, of_groups: Shares, group: Indices, rng: np.random.Generator) -> Shares:
    """Draw class shares [phones, classes] of new owners. Their own classes are drawn without replacement in proportion
    to the weights of their `group` [phones], as the largest of log weight + Gumbel noise.
    """
    weights = of_groups[group]
    count = rng.integers(settings.classes_min, settings.classes_max + 1, size=(len(weights), 1))
    order = np.argsort(-(np.log(weights) + rng.gumbel(size=weights.shape)), axis=1)
    rank = np.argsort(order, axis=1)
    own = rank < count
    if settings.law == "zipf":
        shares = own / (1.0 + rank) ** settings.exponent
        return np.asarray(shares / shares.sum(1, keepdims=True))
    drawn = own * (rng.standard_gamma(settings.concentration, weights.shape) + np.finfo(np.float64).tiny)
    drawn /= drawn.sum(1, keepdims=True)
    return np.asarray(LEAST * own / count + (1 - LEAST) * drawn)
