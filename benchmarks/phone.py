"""What the personal step costs a phone: CPU seconds of one core, and memory on top of the loaded full model."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.options import File, Fresh
from benchmarks.progress import bars
from benchmarks.record import command_line, numbers, open_record, sweep
from fedcaptor.common.config import Personal

MODELS = "small-cnn,resnet20,alexnet,vgg16"
SHAPE = (3, 32, 32)
NEEDED = 3


def step(model: str, images: int, macs: float, seed: int) -> dict[str, float]:
    """Evidence of `images` random images with the phones' own settings, then one submodel; run it in a new process.

    Random weights and images take the same time and memory as others: every matrix has the same size.
    """
    from benchmarks.peak import peak_rss
    from benchmarks.submodels import random_base
    from fedcaptor.common.planner import Budget
    from fedcaptor.common.torch_engine.latency import one_thread
    from fedcaptor.common.torch_engine.prune import Evidence

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


def measure(key: dict[str, Any], macs: float, seed: int) -> dict[str, float]:
    """One row, from a process of its own: peaks are those of a whole process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(step, key["model"], key["images"], macs, seed).result()


def command(
    file: File,
    models: Annotated[str, typer.Option(help="Registered names, separated by commas.")] = MODELS,
    images: Annotated[str, typer.Option(help="Own and reference images together, one or more numbers.")] = "60,150",
    macs: Annotated[float, typer.Option(help="Most MACs of the submodel, as a ratio of the full model's.")] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Weights and images follow from it.")] = 0,
    fresh: Fresh = False,
) -> None:
    """CPU seconds and memory of the personal step on one core: evidence, then one submodel.

    Example: python -m benchmarks phone --json benchmarks/results/phone.json
    """
    settings = {"macs": macs, "needed": NEEDED, "rows": Personal().rows, "shape": list(SHAPE), "seed": seed}
    options: dict[str, str | int | float | None] = {"models": models, "images": images, "macs": macs, "seed": seed}
    record = open_record(file, "phone", settings, command_line("phone", file, **options), fresh)
    keys = [{"model": name, "images": count} for name in models.split(",") for count in numbers(images)]
    with bars("phone") as (on_row, _):
        sweep(record, file, keys, lambda key: measure(dict(key), macs, seed), on_row)
