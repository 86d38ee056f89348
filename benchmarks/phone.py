"""What the personal step costs a phone: CPU seconds of one core, and memory on top of the loaded full model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Annotated, Any

import numpy as np
from typer import Option

from benchmarks.command import SHARED, Benchmark
from benchmarks.options import Models
from benchmarks.progress import OnPhase
from benchmarks.record import Row, numbers
from benchmarks.submodels import random_base
from fedcaptor.common.config import Personal
from fedcaptor.common.memory import peak_rss
from fedcaptor.common.planner import Budget
from fedcaptor.common.torch_engine.latency import one_thread
from fedcaptor.common.torch_engine.prune import Evidence

SHAPE = (3, 32, 32)
NEEDED = 3


@dataclass(frozen=True, kw_only=True)
class Phone(Benchmark):
    """CPU seconds and memory of the personal step on one core: evidence, then one submodel.

    Example: python -m benchmarks phone --json benchmarks/results/phone.json
    """

    models: Models = "small-cnn,resnet20,alexnet,vgg16"
    images: Annotated[str, Option(help="Own and reference images together, one or more numbers.")] = "60,150"
    macs: Annotated[float, Option(help="Most MACs of the submodel, as a ratio of the full model's."), SHARED] = 0.3
    seed: Annotated[int, Option(min=0, help="Weights and images follow from it."), SHARED] = 0

    def shared(self) -> dict[str, Any]:
        return {**super().shared(), "needed": NEEDED, "rows": Personal().rows, "shape": list(SHAPE)}

    def row_keys(self) -> list[Row]:
        return [{"model": name, "images": count} for name in self.models.split(",") for count in numbers(self.images)]

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase) -> dict[str, float]:
        """Return one row, from a process of its own: peaks are those of a whole process."""
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(step, key["model"], key["images"], self.macs, self.seed).result()


def step(model: str, images: int, macs: float, seed: int) -> dict[str, float]:
    """Gather evidence of `images` random images with the phones' own settings, then make one submodel.

    Random weights and images take the same time and memory as others: every matrix has the same size. For a
    process of its own.
    """
    with one_thread():
        base = random_base(model, SHAPE, seed)
        rng = np.random.default_rng(seed)
        own = rng.integers(256, size=(images, *SHAPE[1:], SHAPE[0]), dtype=np.uint8)
        before, start = peak_rss(), time.process_time()
        evidence = Evidence.gather(base, np.arange(NEEDED), own, seed=seed, rows=Personal().rows)
        gathered = time.process_time()
        submodel = evidence.submodel(Budget(macs=macs))
        return {
            "evidence_seconds": gathered - start,
            "submodel_seconds": time.process_time() - gathered,
            "loaded_rss_bytes": before,
            "added_rss_bytes": peak_rss() - before,
            "macs_ratio": submodel.macs_ratio,
        }
