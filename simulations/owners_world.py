"""A small world with the traits of real owners, made of the embedded images: few each, uneven classes, noise.

`SOURCE` names it as a data source; the scenario `owners` has it, with weights that were trained on its few base images:
`fedcaptor train small-cnn --data fedcaptor.simulations.owners_world:photos --epochs 15 --out …`.
"""

from __future__ import annotations

import numpy as np

from fedcaptor.common.arrays import Array
from fedcaptor.common.data.source import Dataset, load

SOURCE = "fedcaptor.simulations.owners_world:photos"

BASE, REFERENCE = 600, 400
"""Images that the base model is trained on, and reference images of the server."""

NOISE = 40.0
"""Deviation of the noise in every image, in grey levels: with so few images to train on, the model is a modest one."""

OWNERS, MEDIAN, SPREAD, FEWEST, MOST = 240, 16, 0.5, 12, 80
"""Owners, and their numbers of images: log-normal with this median and this deviation of the logarithm, cut off."""

POPULARITY = {6: 20, 0: 18, 2: 15, 4: 12, 3: 10, 7: 8, 8: 6, 1: 5, 9: 4, 5: 2}
"""How often each class is met, in percent: garments for the upper body, hard to tell apart, more than shoes."""

TASTES, ALIKE = 4, 6.0
"""Groups of owners, each with a taste around the popularity, and the Dirichlet concentration of owners around it."""

SEED = 20


def photos() -> Dataset:
    """Return the world: always the same images, owners and parts."""
    data, rng = load("embedded"), np.random.default_rng(SEED)
    classes = len(data.names)
    popularity = np.array([POPULARITY[c] for c in range(classes)]) / 100
    left = [list(rng.permutation(np.flatnonzero(data.y == c))) for c in range(classes)]

    def take(shares: Array, count: int) -> list[int]:
        return [left[c].pop() for c in rng.choice(classes, count, p=shares) if left[c]]

    parts = {"train": take(popularity, BASE), "validation": take(popularity, REFERENCE)}
    tastes = rng.dirichlet(2.0 * classes * popularity, TASTES)
    sizes = np.clip(rng.lognormal(np.log(MEDIAN), SPREAD, OWNERS), FEWEST, MOST).astype(int)
    owned = [take(rng.dirichlet(ALIKE * tastes[rng.integers(TASTES)] + 1e-3), int(size)) for size in sizes]
    parts["test"] = [image for images in owned for image in images]
    chosen = np.concatenate([*parts.values()])
    owner = np.zeros(len(chosen), dtype=np.int64)
    owner[BASE + REFERENCE :] = np.repeat(np.arange(OWNERS), [len(images) for images in owned])
    split = np.repeat(list(parts), [len(images) for images in parts.values()])
    images = data.x[chosen] + rng.normal(0, NOISE, data.x[chosen].shape)
    return Dataset(
        "owners", np.clip(np.rint(images), 0, 255).astype(np.uint8), data.y[chosen], data.names, owner, split
    )
