"""Split a data set by the bytes of each image, so that the split depends on neither order nor seed.

No image is in two parts, not even as a copy: equal bytes have equal hashes and fall together.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from fedcaptor.common.arrays import Indices
from fedcaptor.common.data.source import Dataset
from fedcaptor.common.errors import DataError

PARTS = {"base": 0.45, "reference": 0.10, "phones": 0.45}
POOL = {"use": 0.5, "check": 0.2, "test": 0.3}
_MORE = "give more images that differ, or another split key"


def split(data: Dataset) -> dict[str, Indices]:
    """Return sorted indices of the parts base, reference and phones, each [n] and not empty.

    Without a split key: 45, 10 and 45 % by hash. With one, train goes to base, validation to reference and test to
    phones; without validation a tenth of train is the reference, without test train is divided with the phones.
    An image that a key puts into several parts stays in the last of them alone, so that no test image is trained on.
    """
    keys = np.full(len(data.y), "train") if data.split is None else data.split
    train, validation, test = (np.flatnonzero(keys == key) for key in ("train", "validation", "test"))
    hashes = _hashes(data.x, b"part")
    shares = {"base": 0.9, "reference": 0.1} if len(test) else dict(PARTS)
    if len(validation):
        del shares["reference"]
    parts = {"reference": validation, "phones": test} | _divide(train, hashes, shares)
    parts["reference"] = _without(parts["reference"], parts["phones"], hashes)
    parts["base"] = _without(parts["base"], np.concatenate([parts["reference"], parts["phones"]]), hashes)
    return _named(data, {part: parts[part] for part in PARTS})


def pool(data: Dataset, indices: Indices) -> dict[str, Indices]:
    """Divide `indices` (the part phones) [n] by hash into use, check and test: 50, 20 and 30 %, sorted, not empty.

    Several phones may hold one image, but none uses or checks with an image that another is tested on. Raises DataError
    on a part without images.
    """
    chosen = np.unique(indices)
    hashes = np.zeros(len(data.y), np.uint64)
    hashes[chosen] = _hashes(data.x[chosen], b"pool")
    return _named(data, _divide(chosen, hashes, POOL))


def _hashes(x: NDArray[np.uint8], salt: bytes) -> NDArray[np.uint64]:
    """Hash each image to a number [N], from its bytes alone; different salts give independent numbers."""
    digests = (hashlib.blake2b(image, digest_size=8, person=salt).digest() for image in np.ascontiguousarray(x))
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def _divide(indices: Indices, hashes: NDArray[np.uint64], shares: dict[str, float]) -> dict[str, Indices]:
    """Divide `indices` by the place of their hashes in 0..2^64, in proportion to `shares`; parts are sorted."""
    edges = np.cumsum(list(shares.values())) / sum(shares.values())
    place = np.searchsorted(edges[:-1], hashes[indices] / 2.0**64, side="right")
    return {part: np.sort(indices[place == k]) for k, part in enumerate(shares)}


def _without(indices: Indices, others: Indices, hashes: NDArray[np.uint64]) -> Indices:
    return indices[~np.isin(hashes[indices], hashes[others])]


def _named(data: Dataset, parts: dict[str, Indices]) -> dict[str, Indices]:
    for part, indices in parts.items():
        if not len(indices):
            raise DataError(f"{data.name}: part {part!r} gets none of {len(data.y)} images: {_MORE}")
    return parts
