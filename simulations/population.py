"""A population of phones on disk: who meets which images in which round.

Phones read `DIR/population` (unlabelled images and index numbers). True labels and test images lie in `DIR/oracle`,
which phone code never opens. Phones share images within a part (use, check, test), never across parts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Indices
from fedcaptor.common.config import Population as Settings
from fedcaptor.common.data.source import Dataset
from fedcaptor.common.data.splits import pool
from fedcaptor.common.errors import ConfigError, DataError
from fedcaptor.simulations.habits import Shares, shares_by_law
from fedcaptor.simulations.owners import dealt, natural_owners, partitioned, shares_of

Drawn = dict[str, npt.NDArray[Any]]  # use, check, test: image numbers [rounds, phones, width], -1 for none; shares


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
    if settings.law in ("owners", "partitioner"):
        drawn = _images_of_owners(data, parts, settings, rounds, seed)
    else:
        drawn = _images_by_habits(data, parts, settings, rounds, seed)
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


def _limits(settings: Settings) -> dict[str, int]:
    return {"use": settings.use_images, "check": settings.check_images, "test": settings.test_images}


def _images_by_habits(data: Dataset, parts: dict[str, Indices], settings: Settings, rounds: int, seed: int) -> Drawn:
    """Images drawn anew each round by the shares that a law gives."""
    shares = shares_by_law(settings, len(data.names), rounds, seed)
    drawn: Drawn = {"shares": shares}
    for number, (part, count) in enumerate(_limits(settings).items()):
        labels = data.y[parts[part]]
        images = parts[part][np.argsort(labels, kind="stable")]
        sizes = np.bincount(labels, minlength=len(data.names))
        index = np.empty((rounds, settings.phones, count), dtype=np.int32)
        for round in range(rounds):
            rng = np.random.default_rng([seed, 2, number, round])
            index[round] = images[_draw(shares[round], sizes, count, settings.out_of_set, rng)]
        drawn[part] = index
    return drawn


def _draw(shares: Shares, sizes: Indices, count: int, strange: float, rng: np.random.Generator) -> Indices:
    """Positions [phones, count] among images sorted by class, `sizes` [classes] of each, drawn by class `shares`
    [phones, classes]; the share `strange` of them from classes that are not the owner's.
    """
    inside = shares * (sizes > 0)
    outside = (shares == 0) & (sizes > 0)
    bare = int((inside.sum(1) == 0).sum())
    if bare:
        raise DataError(f"a part has no image of any own class of {bare} phones: use more data or fewer classes")
    mixture = inside / inside.sum(1, keepdims=True)
    some = outside.any(1, keepdims=True) * strange
    mixture = (1 - some) * mixture + some * outside / np.maximum(outside.sum(1, keepdims=True), 1)
    phones, classes = mixture.shape
    edges = np.cumsum(mixture, 1)
    edges /= edges[:, -1:]
    # All phones in one search: phone p's classes lie between p and p + 1.
    point = np.minimum(rng.random((phones, count)), 1 - 1e-9) + np.arange(phones)[:, None]
    place = np.searchsorted((edges + np.arange(phones)[:, None]).ravel(), point, side="right")
    drawn = place - np.arange(phones)[:, None] * classes
    return np.asarray((np.cumsum(sizes) - sizes)[drawn] + rng.integers(sizes[drawn]))


def _images_of_owners(data: Dataset, parts: dict[str, Indices], settings: Settings, rounds: int, seed: int) -> Drawn:
    """Each phone's own images, which no other has."""
    images = np.sort(np.concatenate(list(parts.values())))
    owner = None if data.owner is None else data.owner[images]
    if settings.law == "partitioner":
        found = partitioned(data.y[images], owner, settings, seed)
    elif owner is None:
        raise ConfigError('population.law is "owners", the data has no owners: use "habits" or data with an owner key')
    else:
        found = natural_owners(owner, settings.phones)
    shares = shares_of(found, data.y[images], len(data.names), settings.out_of_set)
    drawn: Drawn = {"shares": np.broadcast_to(shares, (rounds, *shares.shape))}
    phone_of = np.full(len(data.y), -1, dtype=np.int64)
    phone_of[images] = found
    for number, (part, limit) in enumerate(_limits(settings).items()):
        rng = np.random.default_rng([seed, 5, number])
        drawn[part] = dealt(parts[part], phone_of[parts[part]], len(shares), limit, rounds, rng)
    return drawn
