"""Class sets, and the images of each: what a strategy may see, what it is tuned on, what it is judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.data.source import Dataset, load
from fedcaptor.common.data.splits import split
from fedcaptor.common.errors import ConfigError, DataError

ALL_IMAGES = 1000
"""At most so many images of all classes together for class-agnostic evidence, unless the target classes' are more."""

OTHERS = 0.1
"""Share of a phone-like mixture's images that show classes that are no target."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images uint8 [N, H, W, C] and labels [N]: the numbers of the model's outputs."""

    x: Images
    y: npt.NDArray[np.int64]

    @classmethod
    def part(cls, data: Dataset, key: str) -> Labelled:
        """Take the images of this split, all of them where the data set has no splits."""
        if data.split is None:
            return cls(data.x, data.y)
        chosen = data.split == key
        if not chosen.any():
            raise DataError(f"{data.name}: none of {len(data.y)} images is of split {key!r}: give another file")
        return cls(data.x[chosen], data.y[chosen])


@dataclass(frozen=True, eq=False)
class ImageSample:
    """Images of a class set. `images`: calibration; `everything`: that of all classes; `tune`, `held`: short tuning.

    No image is in `held` and in another part.
    """

    images: Images
    everything: Images
    tune: Images
    held: Images


@dataclass(frozen=True, eq=False)
class ImageSplits:
    """Training images, from which strategies are given some without labels, and test images."""

    train: Labelled
    test: Labelled

    @classmethod
    def load(cls, train: str, test: str | None) -> ImageSplits:
        """Read data sources. One source for both without splits is divided as everywhere in the project: base and
        phones. Raises DataError when the images differ in shape.
        """
        data = load(train)
        if test is not None and test != train:
            splits = cls(Labelled.part(data, "train"), Labelled.part(load(test), "test"))
        elif data.split is not None:
            splits = cls(Labelled.part(data, "train"), Labelled.part(data, "test"))
        else:
            parts = split(data)
            splits = cls(*(Labelled(data.x[parts[p]], data.y[parts[p]]) for p in ("base", "phones")))
        shapes = [part.x.shape[1:] for part in (splits.train, splits.test)]
        if shapes[0] != shapes[1]:
            raise DataError(f"training images are {shapes[0]}, test images {shapes[1]}: give both in one size")
        return splits

    def with_test_images(self, most: int | None) -> ImageSplits:
        """Keep the first `most` test images of each class, all of them for None."""
        if most is None:
            return self
        y = self.test.y
        chosen = np.sort(np.concatenate([np.flatnonzero(y == label)[:most] for label in np.unique(y)]))
        return ImageSplits(self.train, Labelled(self.test.x[chosen], y[chosen]))

    def classes(self, outputs: int) -> Indices:
        """Return labels with both kinds of images. Raises DataError unless they are numbers of a model's `outputs`."""
        found = np.intersect1d(self.train.y, self.test.y)
        if len(found) == 0 or found[-1] >= outputs:
            highest = found[-1] if len(found) else "none"
            raise DataError(
                f"the highest label with training and test images is {highest}, the model has {outputs} outputs: "
                "labels must be the numbers of its outputs"
            )
        return found

    def sample(
        self, classes: Sequence[int], calibration: int, tune: int, seed: Sequence[int], mixture: float | None = None
    ) -> ImageSample:
        """Draw images by class: the first of one random order calibrate and tune, the last are held out.

        `mixture`: as many calibration images altogether, but as a phone might hold them: class shares drawn from a
        symmetric Dirichlet distribution of this concentration, and one image in ten of another class.
        """
        order = {int(c): np.random.default_rng([*seed, int(c)]) for c in np.unique(self.train.y)}
        shuffled = {c: rng.permutation(np.flatnonzero(self.train.y == c)) for c, rng in order.items()}
        fewer = min(calibration, max(1, max(ALL_IMAGES, calibration * len(classes)) // len(shuffled)))
        held = {c: math.ceil(min(tune, len(shuffled[c])) / 10) for c in classes}
        rest = {c: shuffled[c][: max(1, len(shuffled[c]) - held[c])] for c in classes}
        counts = dict.fromkeys(classes, calibration)
        if mixture is not None:
            counts = _mixed(classes, sorted(shuffled), calibration * len(classes), mixture, seed)
        return ImageSample(
            self._images([rest.get(c, shuffled[c])[:count] for c, count in counts.items()]),
            self._images([index[:fewer] if c not in rest else rest[c][:fewer] for c, index in shuffled.items()]),
            self._images([rest[c][:tune] for c in classes]),
            self._images([shuffled[c][len(rest[c]) :][-held[c] :] for c in classes]),
        )

    def _images(self, parts: Sequence[Indices]) -> Images:
        return self.train.x[np.concatenate(parts)]


def _mixed(
    target: Sequence[int], available: Sequence[int], images: int, mixture: float, seed: Sequence[int]
) -> dict[int, int]:
    """Draw the number of images of each class in a phone-like mixture."""
    rng, others = np.random.default_rng([*seed, len(target)]), [c for c in available if c not in target]
    outside = round(OTHERS * images) if others else 0
    shares = rng.dirichlet([mixture] * len(target))
    counts = dict(zip(target, rng.multinomial(images - outside, shares).tolist(), strict=True))
    if others:
        counts |= zip(others, rng.multinomial(outside, [1 / len(others)] * len(others)).tolist(), strict=True)
    return counts


def drawn(available: Indices, size: int, count: int, seed: int) -> list[tuple[int, ...]]:
    """Draw `count` class sets of `size`, all different where there are so many; more draws begin with the same sets."""
    if not 1 <= size <= len(available):
        raise ConfigError(f"classes is {size}, must lie in 1..{len(available)}: that many have images in both parts")
    rng, repeated, distinct = np.random.default_rng([seed, size]), 0, math.comb(len(available), size)
    found: list[tuple[int, ...]] = []
    while len(found) < count:
        chosen = tuple(sorted(int(c) for c in rng.choice(available, size, replace=False)))
        if chosen not in found[repeated:]:
            found.append(chosen)
            repeated = len(found) if len(found) % distinct == 0 else repeated
    return found


def given(text: str, available: Indices) -> list[tuple[int, ...]]:
    """Read `0,1,2;3,5` as class sets. Raises ConfigError."""
    try:
        sets = [tuple(sorted({int(part) for part in each.split(",")})) for each in text.split(";") if each.strip()]
    except ValueError:
        sets = []
    if not sets:
        raise ConfigError(f"class sets are {text!r}, must be labels such as 0,1,2;3,5")
    unknown = sorted({c for each in sets for c in each} - set(available.tolist()))
    if unknown:
        raise ConfigError(f"class {unknown[0]} has no training or no test images: choose among {_range(available)}")
    return list(dict.fromkeys(sets))


def shown(source: str) -> str:
    """Return a data source without the folders of one machine."""
    return source if source.startswith("torchvision:") else Path(source).name


def _range(available: Indices) -> str:
    return ", ".join(map(str, available)) if len(available) <= 20 else f"{available[0]}..{available[-1]}"
