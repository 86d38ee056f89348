"""A population of phones on disk: who meets which images in which round.

Phones read `DIR/population` (unlabelled images and index numbers). True labels and test images lie in `DIR/oracle`,
which phone code never opens. Phones share images within a part (use, check, test), never across parts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.config import Population as Settings
from common.data.source import Dataset
from common.data.splits import pool
from common.errors import ConfigError, DataError
from common.plan import Indices

SMALLEST_OWNER = 12
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Habits:
    """`shares` [rounds, phones, classes]: how often owners truly meet each class; rows sum to one."""

    shares: Shares

    def own(self, round: int, phone: int) -> Indices:
        """True classes of an owner, sorted."""
        return np.flatnonzero(self.shares[round, phone])


def draw_habits(settings: Settings, classes: int, rounds: int, seed: int) -> Habits:
    """Owners' class shares: group favourites (`habits`) or independent owners (`dirichlet`)."""
    if settings.classes_max > classes:
        raise ConfigError(f"population.classes_max is {settings.classes_max}, the data has {classes} classes: lower it")
    rng = np.random.default_rng([seed, 1])
    favourites = _favourites(settings, classes, rng)
    group = rng.integers(len(favourites), size=settings.phones)
    shares = np.empty((rounds, settings.phones, classes))
    now = np.stack([_owner(settings, classes, favourites[g], rng) for g in group])
    for round in range(rounds):
        if settings.drift_round and round + 1 == settings.drift_round:
            moved = rng.random(settings.phones) < settings.drift_share
            group = np.where(moved, (group + 1) % len(favourites), group)
            fresh = np.stack([_owner(settings, classes, favourites[g], rng) for g in group])
            now = np.where(moved[:, None], fresh, now)
        shares[round] = now
    return Habits(shares)


def _favourites(settings: Settings, classes: int, rng: np.random.Generator) -> list[Indices]:
    """Favourite classes of each group: all classes dealt out in turn, enough for the largest owner."""
    if settings.law == "dirichlet":
        return [np.arange(classes)]
    size = min(classes, max(settings.classes_max, -(-classes // settings.groups)))
    deck = np.concatenate([rng.permutation(classes) for _ in range(-(-settings.groups * size // classes) + 1)])
    favourites = []
    for _ in range(settings.groups):
        hand: list[int] = []
        rest: list[int] = []
        for c in deck:
            (hand if len(hand) < size and c not in hand else rest).append(c)
        favourites.append(np.array(hand))
        deck = np.array(rest)
    return favourites


def _owner(settings: Settings, classes: int, favourites: Indices, rng: np.random.Generator) -> Shares:
    count = int(rng.integers(settings.classes_min, settings.classes_max + 1))
    weights = np.full(classes, (1 - settings.typical) / classes)
    weights[favourites] += settings.typical / len(favourites)
    weights = np.maximum(weights, 1e-12)
    own = rng.choice(classes, count, replace=False, p=weights / weights.sum())
    shares = np.zeros(classes)
    while shares[own].min() < 0.1 / count:  # a class that is never met is no class of the owner's
        shares[own] = rng.dirichlet(np.full(count, settings.concentration))
    return shares


def _draw(shares: Shares, by_class: list[Indices], count: int, strange: float, rng: np.random.Generator) -> Indices:
    """`count` image numbers drawn by class shares, the share `strange` of them from other classes."""
    available = np.array([len(images) > 0 for images in by_class])
    inside = shares * available
    outside = ((shares == 0) & available).astype(float)
    if inside.sum() == 0:
        raise DataError(f"no image of classes {np.flatnonzero(shares).tolist()} in this part: use more data")
    mixture = inside / inside.sum()
    if outside.sum() > 0:
        mixture = (1 - strange) * mixture + strange * outside / outside.sum()
    drawn = rng.choice(len(shares), count, p=mixture)
    return np.array([by_class[c][rng.integers(len(by_class[c]))] for c in drawn], dtype=np.int32)


def prepare(
    directory: Path,
    data: Dataset,
    phones_part: Indices,
    settings: Settings,
    rounds: int,
    seed: int,
    corrections: float = 0.0,
) -> int:
    """Write the population of all rounds; returns the number of phones. A finished one is kept as it is."""
    done = directory / "population" / "phones.json"
    if done.exists():
        return int(json.loads(done.read_text())["phones"])
    parts = pool(data, phones_part)
    if settings.law == "owners":
        drawn = _natural_owners(data, parts, settings, rounds)
    else:
        drawn = _drawn_owners(data, parts, settings, rounds, seed)
    visible, oracle = directory / "population", directory / "oracle"
    visible.mkdir(parents=True, exist_ok=True)
    oracle.mkdir(parents=True, exist_ok=True)
    seen = np.concatenate([parts["use"], parts["check"]])
    np.save(visible / "images.npy", data.x[seen])
    np.save(visible / "use.npy", _renumber(drawn["use"], seen))
    np.save(visible / "check.npy", _renumber(drawn["check"], seen))
    np.save(visible / "corrections.npy", _corrections(drawn["use"], data.y, corrections, seed))
    np.save(oracle / "images.npy", data.x[parts["test"]])
    np.save(oracle / "labels.npy", data.y[parts["test"]])
    np.save(oracle / "test.npy", _renumber(drawn["test"], parts["test"]))
    np.save(oracle / "shares.npy", drawn["shares"])
    phones = drawn["use"].shape[1]
    done.write_text(json.dumps({"phones": phones, "classes": len(data.names)}))
    return int(phones)


def _renumber(images: Indices, part: Indices) -> Indices:
    """Positions in `part` of the images' numbers, -1 stays."""
    order = np.argsort(part)
    found = order[np.searchsorted(part, np.maximum(images, part.min()), sorter=order)]
    return np.where(images < 0, -1, found).astype(np.int32)


def _corrections(use: Indices, labels: Indices, share: float, seed: int) -> Indices:
    """What owners would correct predictions to: the true label of a drawn share of images, -1 elsewhere."""
    if share == 0:
        return np.full((use.shape[0], 1, 1), -1, dtype=np.int16)
    chosen = (np.random.default_rng([seed, 3]).random(use.shape) < share) & (use >= 0)
    return np.where(chosen, labels[np.maximum(use, 0)], -1).astype(np.int16)


def _drawn_owners(
    data: Dataset, parts: dict[str, Indices], settings: Settings, rounds: int, seed: int
) -> dict[str, npt.NDArray[Any]]:
    habits = draw_habits(settings, len(data.names), rounds, seed)
    sizes = {"use": settings.use_images, "check": settings.check_images, "test": settings.test_images}
    drawn: dict[str, npt.NDArray[Any]] = {"shares": habits.shares}
    for number, (part, size) in enumerate(sizes.items()):
        by_class = [parts[part][data.y[parts[part]] == c] for c in range(len(data.names))]
        index = np.full((rounds, settings.phones, size), -1, dtype=np.int32)
        for round in range(rounds):
            for phone in range(settings.phones):
                rng = np.random.default_rng([seed, 2, number, round, phone])
                index[round, phone] = _draw(habits.shares[round, phone], by_class, size, settings.out_of_set, rng)
        drawn[part] = index
    return drawn


def _natural_owners(
    data: Dataset, parts: dict[str, Indices], settings: Settings, rounds: int
) -> dict[str, npt.NDArray[Any]]:
    """Each image's own owner; an owner with fewer than a dozen images joins the next."""
    if data.owner is None:
        raise ConfigError('population.law is "owners", the data has no owners: use "habits" or data with an owner key')
    images = np.concatenate(list(parts.values()))
    joined = _join_small(data.owner[images])[: settings.phones]
    shares = np.zeros((rounds, len(joined), len(data.names)))
    drawn: dict[str, npt.NDArray[Any]] = {"shares": shares}
    limits = {"use": settings.use_images, "check": settings.check_images, "test": settings.test_images}
    for part, limit in limits.items():
        own = [parts[part][np.isin(data.owner[parts[part]], owners)][:limit] for owners in joined]
        width = max(1, *(len(o) for o in own))
        index = np.full((rounds, len(joined), width), -1, dtype=np.int32)
        for phone, chosen in enumerate(own):
            index[:, phone, : len(chosen)] = chosen
        drawn[part] = index
    for phone, owners in enumerate(joined):
        labels = data.y[images[np.isin(data.owner[images], owners)]]
        shares[:, phone] = np.bincount(labels, minlength=len(data.names)) / len(labels)
    return drawn


def _join_small(owner: Indices) -> list[Indices]:
    """Owner numbers that make up each phone, in the order of the numbers."""
    numbers, counts = np.unique(owner, return_counts=True)
    phones: list[Indices] = []
    waiting: list[int] = []
    total = 0
    for number, count in zip(numbers, counts, strict=True):
        waiting.append(int(number))
        total += int(count)
        if total >= SMALLEST_OWNER:
            phones.append(np.array(waiting))
            waiting, total = [], 0
    if waiting and phones:
        phones[-1] = np.append(phones[-1], waiting)
    if not phones:
        raise DataError(f"all owners together have fewer than {SMALLEST_OWNER} images: use more data")
    return phones
