"""What benchmarks of a trained network share: the model, its images, the class sets, and what rows say of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from benchmarks.command import Benchmark
from benchmarks.record import machine, numbers
from benchmarks.subsets import ImageSplits, Labelled, drawn, shown
from fedcaptor.common.arrays import Indices
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.class_moments import network_digest


@dataclass(frozen=True, eq=False)
class Inputs:
    """`available`: labels with training and test images. `threads`: of torch."""

    base: BaseModel
    splits: ImageSplits
    available: Indices
    threads: int


class NetworkBenchmark(Benchmark):
    """A benchmark of a trained network on class sets; subclasses declare these fields with their options."""

    model: str
    weights: Path
    data: str
    test: str | None
    classes: str
    draws: int
    seed: int
    threads: int | None
    test_per_class: int | None = None

    @cached_property
    def inputs(self) -> Inputs:
        """Load the model and its images, and set torch's and numpy's threads: all cores if not given. Raises DataError
        and ModelError for what does not fit.
        """
        torch.set_num_threads(self.threads or machine()["cores"])
        threadpool_limits(torch.get_num_threads())  # numpy's, whose threads wait by spinning when others want the cores
        splits = ImageSplits.load(self.data, self.test).with_test_images(self.test_per_class)
        height, width, channels = splits.train.x.shape[1:]
        base = BaseModel.load(self.weights, self.model, (channels, height, width))
        return Inputs(base, splits, splits.classes(base.groups.classes), torch.get_num_threads())

    def shared(self) -> dict[str, Any]:
        groups, splits, images = self.inputs.base.groups, self.inputs.splits, len(self.inputs.available)
        return {
            "model": self.model,
            "weights": network_digest(self.inputs.base)[:16],
            "outputs": groups.classes,
            "macs": groups.macs(),
            "data": {"name": shown(self.data), **_size(splits.train)},
            "test": {"name": shown(self.test or self.data), **_size(splits.test)},
            **({} if images == groups.classes else {"outputs_with_images": images}),
            **super().shared(),
        }

    def options(self) -> dict[str, Any]:
        return {**super().options(), "data": shown(self.data), "test": self.test and shown(self.test)}

    def class_sets_of_draws(self) -> list[list[tuple[int, ...]]]:
        """Return random class sets of each draw, one for each of the numbers in `classes`. Raises ConfigError."""
        sizes = [drawn(self.inputs.available, size, self.draws, self.seed) for size in numbers(self.classes)]
        return [list(of_draw) for of_draw in zip(*sizes, strict=True)]

    def numbered_sets(self) -> Iterator[tuple[int, list[int]]]:
        """Yield each class set with the number of its draw: a run that was stopped has whole draws."""
        for draw, of_draw in enumerate(self.class_sets_of_draws()):
            yield from ((draw, list(classes)) for classes in of_draw)


def _size(part: Labelled) -> dict[str, Any]:
    digest = hashlib.sha256(part.x.tobytes() + part.y.tobytes()).hexdigest()[:16]
    return {"images": len(part.y), "digest": digest}
