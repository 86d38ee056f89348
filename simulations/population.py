"""A population of phones on disk: which phone meets which images in which round.

Phones read `DIR/population` (unlabelled images and index numbers). True labels and test images lie in `DIR/oracle`,
which phone code never opens. Phones share images within a part (use, check, test), never across parts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedcaptor.common.arrays import Array, Images, Indices
from fedcaptor.common.config import Look
from fedcaptor.common.config import Population as Settings
from fedcaptor.common.data.source import Dataset
from fedcaptor.common.data.splits import pool
from fedcaptor.common.errors import ConfigError, DataError
from fedcaptor.common.files import write_whole
from fedcaptor.common.random_streams import Stream, stream
from fedcaptor.simulations.habits import Shares, shares_by_law
from fedcaptor.simulations.looks import in_look
from fedcaptor.simulations.owners import by_round, natural_owners, partitioned, shares_of


@dataclass(frozen=True, eq=False)
class Encounters:
    """What phones meet: image numbers [rounds, phones, width] of each part, -1 for none, and the class `shares`
    [rounds, phones, classes] of their owners.
    """

    use: Array
    check: Array
    test: Array
    shares: Shares


def prepare(
    directory: Path,
    data: Dataset,
    phones_part: Indices,
    settings: Settings,
    rounds: int,
    seed: int,
    corrections: float = 0.0,
    looks: Sequence[Look] = (),
) -> int:
    """Write the population of all rounds; returns the number of phones. A finished one is kept as it is.

    With `looks` there are photos of all images in each of them, the test images' too.
    """
    done = directory / "population" / "phones.json"
    if done.exists():
        return int(json.loads(done.read_text())["phones"])
    parts = pool(data, phones_part)
    if settings.law in ("owners", "partitioner"):
        met = _images_of_owners(data, parts, settings, rounds, seed)
    else:
        met = _images_by_habits(data, parts, settings, rounds, seed)
    visible, oracle = directory / "population", directory / "oracle"
    visible.mkdir(parents=True, exist_ok=True)
    oracle.mkdir(parents=True, exist_ok=True)
    seen = np.concatenate([parts["use"], parts["check"]])
    _save_images(visible, data.x[seen], looks, seed)
    np.save(visible / "use.npy", _renumber(met.use, seen))
    np.save(visible / "check.npy", _renumber(met.check, seen))
    np.save(visible / "corrections.npy", _corrections(met.use, data.y, corrections, seed))
    _save_images(oracle, data.x[parts["test"]], looks, seed)
    np.save(oracle / "labels.npy", data.y[parts["test"]])
    np.save(oracle / "test.npy", _renumber(met.test, parts["test"]))
    np.save(oracle / "shares.npy", met.shares)
    phones = met.use.shape[1]
    write_whole(done, json.dumps({"phones": phones, "classes": len(data.names)}).encode())
    return int(phones)


def images_file(folder: Path, look: int) -> Path:
    """Return the file of the photos in a look, by its number; without looks the number is 0."""
    return folder / (f"images-{look}.npy" if look else "images.npy")


def _save_images(folder: Path, images: Images, looks: Sequence[Look], seed: int) -> None:
    for number in range(max(len(looks), 1)):
        np.save(images_file(folder, number), in_look(images, looks, number, seed) if looks else images)


def _renumber(images: Indices, part: Indices) -> Indices:
    """Replace image numbers by their positions in `part`; -1 stays."""
    order = np.argsort(part)
    found = order[np.searchsorted(part, np.maximum(images, part.min()), sorter=order)]
    return np.where(images < 0, -1, found).astype(np.int32)


def _corrections(use: Indices, labels: Indices, share: float, seed: int) -> Indices:
    """Labels that owners give as corrections, of the shape of `use`: true ones for a `share` of the images, else -1."""
    if share == 0:
        return np.full((use.shape[0], 1, 1), -1, dtype=np.int16)
    chosen = (stream(seed, Stream.CORRECTIONS).random(use.shape) < share) & (use >= 0)
    return np.where(chosen, labels[np.maximum(use, 0)], -1).astype(np.int16)


def _limits(settings: Settings) -> dict[str, int]:
    return {"use": settings.use_images, "check": settings.check_images, "test": settings.test_images}


def _images_by_habits(
    data: Dataset, parts: dict[str, Indices], settings: Settings, rounds: int, seed: int
) -> Encounters:
    """Draw images anew each round, in proportion to the class shares that a law gives."""
    shares = shares_by_law(settings, len(data.names), rounds, seed)
    found: dict[str, Array] = {}
    for number, (part, count) in enumerate(_limits(settings).items()):
        labels = data.y[parts[part]]
        images = parts[part][np.argsort(labels, kind="stable")]
        sizes = np.bincount(labels, minlength=len(data.names))
        index = np.empty((rounds, settings.phones, count), dtype=np.int32)
        for round in range(rounds):
            rng = stream(seed, Stream.IMAGES, number, round)
            index[round] = images[_positions(shares[round], sizes, count, settings.out_of_set, rng)]
        found[part] = index
    return Encounters(**found, shares=shares)


def _positions(shares: Shares, sizes: Indices, count: int, out_of_set: float, rng: np.random.Generator) -> Indices:
    """Draw positions [phones, count] among images sorted by class, of which there are `sizes` [classes], by class
    `shares` [phones, classes]. The share `out_of_set` of them is from classes that are not the owner's.
    """
    inside = shares * (sizes > 0)
    outside = (shares == 0) & (sizes > 0)
    without = int((inside.sum(1) == 0).sum())
    if without:
        raise DataError(f"a part has no image of any own class of {without} phones: use more data or fewer classes")
    mixture = inside / inside.sum(1, keepdims=True)
    strange = outside.any(1, keepdims=True) * out_of_set
    mixture = (1 - strange) * mixture + strange * outside / np.maximum(outside.sum(1, keepdims=True), 1)
    phones, classes = mixture.shape
    edges = np.cumsum(mixture, 1)
    edges /= edges[:, -1:]
    # All phones in one search: phone p's classes lie between p and p + 1.
    point = np.minimum(rng.random((phones, count)), 1 - 1e-9) + np.arange(phones)[:, None]
    place = np.searchsorted((edges + np.arange(phones)[:, None]).ravel(), point, side="right")
    label = place - np.arange(phones)[:, None] * classes
    return np.asarray((np.cumsum(sizes) - sizes)[label] + rng.integers(sizes[label]))


def _images_of_owners(
    data: Dataset, parts: dict[str, Indices], settings: Settings, rounds: int, seed: int
) -> Encounters:
    """Give each phone the images of one owner, which no other phone meets."""
    images = np.sort(np.concatenate(list(parts.values())))
    owner = None if data.owner is None else data.owner[images]
    if settings.law == "partitioner":
        phone = partitioned(data.y[images], owner, settings, seed)
    elif owner is None:
        raise ConfigError('population.law is "owners", the data has no owners: use "habits" or data with an owner key')
    else:
        phone = natural_owners(owner, settings.phones)
    shares = shares_of(phone, data.y[images], len(data.names), settings.out_of_set)
    found: dict[str, Array] = {}
    phone_of = np.full(len(data.y), -1, dtype=np.int64)
    phone_of[images] = phone
    for number, (part, limit) in enumerate(_limits(settings).items()):
        rng = stream(seed, Stream.OWN_IMAGES, number)
        found[part] = by_round(parts[part], phone_of[parts[part]], len(shares), limit, rounds, rng)
    return Encounters(**found, shares=np.broadcast_to(shares, (rounds, *shares.shape)))
