"""What commands on a trained network share: the model, its images, the class sets, and what rows say of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from benchmarks.record import machine, numbers
from benchmarks.subsets import Labelled, Pool, drawn, shown
from fedcaptor.common.arrays import Indices
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.class_moments import network_digest


@dataclass(frozen=True, eq=False)
class Inputs:
    """`available`: labels with training and test images. `threads`: of torch. `settings`: what all rows share.
    `options`: of the command line, as a reader of the results gives them.
    """

    base: BaseModel
    pool: Pool
    available: Indices
    threads: int
    settings: dict[str, Any]
    options: dict[str, str | int | float | None]

    @classmethod
    def load(
        cls,
        model: str,
        weights: Path,
        data: str,
        test: str | None,
        threads: int | None,
        test_per_class: int | None = None,
    ) -> Inputs:
        """Sets torch's and numpy's threads: all cores if not given. Raises DataError and ModelError for what does not
        fit.
        """
        torch.set_num_threads(threads or machine()["cores"])
        threadpool_limits(torch.get_num_threads())  # numpy's, whose threads wait by spinning when others want the cores
        pool = Pool.load(data, test).judged_by(test_per_class)
        height, width, channels = pool.train.x.shape[1:]
        base = BaseModel.load(weights, model, (channels, height, width))
        available = pool.classes(base.groups.classes)
        settings = {
            "model": model,
            "weights": network_digest(base)[:16],
            "outputs": base.groups.classes,
            "macs": base.groups.macs(),
            "data": {"name": shown(data), **_size(pool.train)},
            "test": {"name": shown(test or data), **_size(pool.test)},
            **({} if len(available) == base.groups.classes else {"outputs_with_images": len(available)}),
        }
        options: dict[str, str | int | float | None] = {
            "model": model,
            "weights": weights.name,
            "data": shown(data),
            "test": None if test is None else shown(test),
        }
        return cls(base, pool, available, torch.get_num_threads(), settings, options)

    def sets(self, classes: str, draws: int, seed: int) -> list[list[tuple[int, ...]]]:
        """Random class sets of each draw, one for each of the numbers in `classes`. Raises ConfigError."""
        sizes = [drawn(self.available, size, draws, seed) for size in numbers(classes)]
        return [list(of_draw) for of_draw in zip(*sizes, strict=True)]


def _size(part: Labelled) -> dict[str, Any]:
    return {"images": len(part.y), "digest": _digest(part.x.tobytes() + part.y.tobytes())}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
