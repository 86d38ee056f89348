"""Which phone an image belongs to: by the natural owners of the data, or by a partitioner of flwr-datasets.

These functions are pure: they read and write no files.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Indices
from fedcaptor.common.config import Population as Settings
from fedcaptor.common.errors import ConfigError, DataError
from fedcaptor.common.random_streams import Stream, stream

SMALLEST_OWNER = 12
PARTITIONERS = (
    "DirichletPartitioner",
    "ExponentialPartitioner",
    "GroupedNaturalIdPartitioner",
    "IidPartitioner",
    "InnerDirichletPartitioner",
    "LinearPartitioner",
    "NaturalIdPartitioner",
    "PathologicalPartitioner",
    "ShardPartitioner",
    "SizePartitioner",
    "SquarePartitioner",
)


def natural_owners(owner: Indices, phones: int) -> Indices:
    """Phone [N] of each image by its owner's number [N], -1 beyond the first `phones`.

    An owner with fewer than a dozen images joins the next, at the end the one before.
    """
    _, position, counts = np.unique(owner, return_inverse=True, return_counts=True)
    phone_of = np.empty(len(counts), dtype=np.int64)
    phone = total = 0
    for number, count in enumerate(counts):
        phone_of[number] = phone
        total += int(count)
        if total >= SMALLEST_OWNER:
            phone, total = phone + 1, 0
    if phone == 0:
        raise DataError(f"all owners together have fewer than {SMALLEST_OWNER} images: use more data")
    return _first(np.minimum(phone_of, phone - 1)[position], phones)


def partitioned(labels: Indices, owner: Indices | None, settings: Settings, seed: int) -> Indices:
    """Phone [N] of each image by its label [N] and, where known, owner [N]; -1 for one that no partition takes.

    The partitioner sees the images in an order that `seed` draws. Raises ConfigError for a partitioner or arguments
    that do not fit.
    """
    try:
        import datasets
        from flwr_datasets import partitioner as offered
    except ImportError:
        raise ConfigError(
            "population.law \"partitioner\" needs flwr-datasets: pip install -e '.[partitioners]'"
        ) from None
    name = settings.partitioner
    if name not in PARTITIONERS:
        raise ConfigError(f"population.partitioner is {name!r}, known are {', '.join(PARTITIONERS)}")
    kind = getattr(offered, name)
    arguments = _arguments(kind, settings, seed)
    image = stream(seed, Stream.PARTITION).permutation(len(labels))
    columns = {"image": image, "label": labels[image]} | ({} if owner is None else {"owner": owner[image]})
    phone_of = np.full(len(labels), -1, dtype=np.int64)
    try:
        partitioner = kind(**arguments)
        partitioner.dataset = datasets.Dataset.from_dict(columns)
        for phone in range(partitioner.num_partitions):
            phone_of[np.asarray(partitioner.load_partition(phone)["image"], dtype=np.int64)] = phone
    except (TypeError, ValueError, KeyError, IndexError, AssertionError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{name} cannot divide {len(labels)} images: {reason}: change population.phones or "
            "population.partitioner_arguments"
        ) from None
    return _all_used(_first(phone_of, settings.phones), min(partitioner.num_partitions, settings.phones), name)


def _arguments(kind: Any, settings: Settings, seed: int) -> dict[str, Any]:
    """The partitioner's arguments: the configured ones, and those that follow from the population."""
    known = set(inspect.signature(kind).parameters)
    given = {"num_partitions": settings.phones, "seed": seed}
    open_to_user = sorted(known - set(given))
    for name in settings.partitioner_arguments:
        if name not in open_to_user:
            raise ConfigError(
                f"population.partitioner_arguments.{name} is unknown, {settings.partitioner} takes "
                + (", ".join(open_to_user) or "none")
            )
    defaults = {**given, "partition_by": "label"}
    return {key: value for key, value in defaults.items() if key in known} | settings.partitioner_arguments


def _all_used(phone_of: Indices, phones: int, name: str) -> Indices:
    without = phones - len(np.unique(phone_of[phone_of >= 0]))
    if without:
        raise ConfigError(
            f"{name} leaves {without} of {phones} phones without an image: lower population.phones or change "
            "population.partitioner_arguments"
        )
    return phone_of


def _first(phone_of: Indices, phones: int) -> Indices:
    return np.where(phone_of < phones, phone_of, -1)


def shares_of(phone_of: Indices, labels: Indices, classes: int, out_of_set: float) -> npt.NDArray[np.float64]:
    """Class shares [phones, classes] of owners by their images; rows sum to one. The rarest classes of an owner, with
    `out_of_set` of the owner's images at most, do not count as the owner's.
    """
    counts = np.zeros((int(phone_of.max()) + 1, classes))
    mine = phone_of >= 0
    np.add.at(counts, (phone_of[mine], labels[mine]), 1.0)
    order = np.argsort(counts, axis=1, kind="stable")
    reached = np.cumsum(np.take_along_axis(counts, order, 1), 1)
    rare = np.zeros(counts.shape, dtype=bool)
    np.put_along_axis(rare, order, (reached <= out_of_set * reached[:, -1:]) & (out_of_set < 1), 1)
    counts[rare] = 0.0
    return np.asarray(counts / counts.sum(1, keepdims=True))


def by_round(
    images: Indices, phone_of: Indices, phones: int, limit: int, rounds: int, rng: np.random.Generator
) -> npt.NDArray[np.int32]:
    """Image numbers [rounds, phones, width] of a part's `images` [n] by their phone [n], -1 where a phone has fewer.

    A phone meets `limit` images a round at most. Their order is drawn once; each round goes on where the last one
    ended, and begins again after the last image.
    """
    order = np.lexsort((rng.permutation(len(images)), phone_of))
    order = order[phone_of[order] >= 0]
    counts = np.bincount(phone_of[order], minlength=phones)
    index = np.full((rounds, phones, max(1, min(limit, int(counts.max(initial=0))))), -1, dtype=np.int32)
    for phone, own in enumerate(np.split(images[order], np.cumsum(counts)[:-1])):
        size = min(limit, len(own))
        for round in range(rounds if size else 0):
            index[round, phone, :size] = own[(np.arange(size) + round * size) % len(own)]
    return index
