"""Submodels per second and peak memory: the factory against Torch-Pruning, on the same plans in one run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.options import File, Fresh
from benchmarks.progress import bars
from benchmarks.record import command_line, open_record, sweep
from fedcaptor.common.errors import ConfigError

MODELS = "vgg16,resnet56,torchvision/mobilenet_v2"
OnPhase = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trial:
    """What all rows have in common. `images`: noise images that a submodel is merged on."""

    macs: float
    plans: int
    repetitions: int
    images: int
    seed: int
    shape: tuple[int, int, int] = (3, 32, 32)

    def __post_init__(self) -> None:
        if not 0 < self.macs <= 1:
            raise ConfigError(f"--macs is {self.macs}, must lie in (0, 1]")

    def settings(self) -> dict[str, Any]:
        return {
            "macs": self.macs,
            "plans": self.plans,
            "repetitions": self.repetitions,
            "images": self.images,
            "seed": self.seed,
            "shape": list(self.shape),
            "torch_pruning": version("torch-pruning"),
        }


def measure(trial: Trial, key: Mapping[str, Any], on_phase: OnPhase = lambda name, done, total: None) -> dict[str, Any]:
    """Figures of one model's row. One-thread figures are CPU seconds of the measuring thread: other programs do not
    count. Those of several threads are by the clock on the wall.
    """
    from benchmarks import submodels
    from fedcaptor.common.torch_engine.latency import one_thread

    with one_thread():
        base = submodels.random_base(key["model"], trial.shape, trial.seed)
        plans = submodels.random_plans(base.groups, trial.macs, trial.plans, trial.seed)
        submodels.require_equal(base, plans[0])
        kept = plans[0].counts()
        return {
            **_speeds(base, plans, trial.repetitions, on_phase),
            **_memory(trial, base.name, base.groups.to_json()),
            "merging_seconds": submodels.merging_seconds(base, plans[0], trial.images, trial.seed),
            "macs_ratio": base.groups.macs_ratio(kept),
            "parameters_ratio": base.groups.parameters_ratio(kept),
            "parameters": base.groups.parameters(),
        }


def _speeds(base: Any, plans: list[Any], repetitions: int, on_phase: OnPhase) -> dict[str, float]:
    """Medians over repetitions of whole batches, both makers by turns: what a maker leaves behind to be freed or
    collected within its batch counts, what it leaves after it does not.
    """
    from benchmarks import submodels

    ours: list[float] = []
    theirs: list[tuple[float, float]] = []
    walls: list[tuple[float, float]] = []
    for number in range(repetitions):
        gc.collect()
        ours.append(submodels.factory_seconds(base, plans))
        gc.collect()
        theirs.append(submodels.torch_pruning_seconds(base, plans))
        gc.collect()
        walls.append((submodels.wall_seconds(base, plans, 1), submodels.wall_seconds(base, plans, 2)))
        on_phase(base.name, number + 1, repetitions)
    mine, whole, untraced = median(ours), median(t for t, _ in theirs), median(t - graph for t, graph in theirs)
    return {
        "ours_per_second": 1 / mine,
        "torch_pruning_per_second": 1 / whole,
        "ratio": whole / mine,
        "torch_pruning_untraced_per_second": 1 / untraced,
        "ratio_untraced": untraced / mine,
        "ours_threads1_per_second": 1 / median(one for one, _ in walls),
        "ours_threads2_per_second": 1 / median(two for _, two in walls),
        "copying_per_second": 1 / median(submodels.copying_seconds(base, plan) for plan in plans for _ in range(3)),
    }


def _memory(trial: Trial, model: str, groups: str) -> dict[str, int]:
    """Peak of a process that makes all the plans' submodels one after another, and how much of it came by making."""
    from benchmarks.submodels import peak

    figures: dict[str, int] = {}
    for maker, prefix in (("ours", ""), ("torch-pruning", "torch_pruning_")):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            wanted = (maker, model, trial.shape, groups, trial.macs, trial.plans, trial.seed)
            before, after = pool.submit(peak, *wanted).result()
        figures |= {f"{prefix}peak_rss_bytes": after, f"{prefix}added_rss_bytes": after - before}
    return figures


def command(
    file: File,
    models: Annotated[str, typer.Option(help="Registered names, separated by commas.")] = MODELS,
    macs: Annotated[float, typer.Option(help="Most MACs of a submodel, as a ratio of the full model's.")] = 0.5,
    plans: Annotated[int, typer.Option(min=1, help="Random plans a model.")] = 8,
    repetitions: Annotated[int, typer.Option(min=1, help="Times that each plan is carried out by both.")] = 5,
    images: Annotated[int, typer.Option(min=2, help="Noise images to merge on.")] = 64,
    seed: Annotated[int, typer.Option(help="Weights, plans and images follow from it.")] = 0,
    fresh: Fresh = False,
) -> None:
    """Submodels per second and peak memory of the submodel factory, against Torch-Pruning in the same run.

    One thread, random weights, the same channels kept; both must give the same network bit for bit. VGG-16 takes
    some minutes, nearly all of them to gather the evidence for merging.

    Example: python -m benchmarks slicing --json benchmarks/results/slicing.json
    """
    trial = Trial(macs, plans, repetitions, images, seed)
    options: dict[str, str | int | float | None] = {
        "models": models,
        "macs": macs,
        "plans": plans,
        "repetitions": repetitions,
        "images": images,
        "seed": seed,
    }
    record = open_record(file, "slicing", trial.settings(), command_line("slicing", file, **options), fresh)
    with bars("slicing") as (on_row, on_phase):
        keys = [{"model": name} for name in models.split(",")]
        sweep(record, file, keys, lambda key: measure(trial, key, on_phase), on_row)
