"""Submodels per second and peak memory: the factory against Torch-Pruning, on the same plans in one run."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from statistics import median
from typing import Annotated, Any

from typer import Option

from benchmarks import submodels
from benchmarks.command import SHARED, Benchmark
from benchmarks.progress import OnPhase
from benchmarks.record import Row
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.torch_engine.latency import one_thread

SHAPE = (3, 32, 32)


@dataclass(frozen=True, kw_only=True)
class Slicing(Benchmark):
    """Submodels per second and peak memory of the submodel factory, against Torch-Pruning in the same run.

    One thread, random weights, the same channels kept; both must give the same network bit for bit. VGG-16 takes
    some minutes, nearly all of them to gather the evidence for merging.

    Example: python -m benchmarks slicing --json benchmarks/results/slicing.json
    """

    models: Annotated[str, Option(help="Registered names, separated by commas.")] = (
        "vgg16,resnet56,torchvision/mobilenet_v2"
    )
    macs: Annotated[float, Option(help="Most MACs of a submodel, as a ratio of the full model's."), SHARED] = 0.5
    plans: Annotated[int, Option(min=1, help="Random plans a model."), SHARED] = 8
    repetitions: Annotated[int, Option(min=1, help="Times that each plan is carried out by both."), SHARED] = 5
    images: Annotated[int, Option(min=2, help="Noise images to merge on."), SHARED] = 64
    seed: Annotated[int, Option(help="Weights, plans and images follow from it."), SHARED] = 0

    def __post_init__(self) -> None:
        if not 0 < self.macs <= 1:
            raise ConfigError(f"--macs is {self.macs}, must lie in (0, 1]")

    def shared(self) -> dict[str, Any]:
        return {**super().shared(), "shape": list(SHAPE), "torch_pruning": version("torch-pruning")}

    def row_keys(self) -> list[Row]:
        return [{"model": name} for name in self.models.split(",")]

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase) -> dict[str, Any]:
        """Return one model's figures. One-thread figures are CPU seconds of the measuring thread: other programs do
        not count. Those of several threads are by the clock on the wall.
        """
        with one_thread():
            base = submodels.random_base(key["model"], SHAPE, self.seed)
            plans = submodels.random_plans(base.groups, self.macs, self.plans, self.seed)
            submodels.require_equal(base, plans[0])
            kept = plans[0].counts()
            return {
                **_speeds(base, plans, self.repetitions, on_phase),
                **self._memory(base.name, base.groups.to_json()),
                "merging_seconds": submodels.merging_seconds(base, plans[0], self.images, self.seed),
                "macs_ratio": base.groups.macs_ratio(kept),
                "parameters_ratio": base.groups.parameters_ratio(kept),
                "parameters": base.groups.parameters(),
            }

    def _memory(self, model: str, groups: str) -> dict[str, int]:
        """Measure the peak of a process that makes all submodels one after another, and how much came by making."""
        figures: dict[str, int] = {}
        for maker, prefix in (("ours", ""), ("torch-pruning", "torch_pruning_")):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                wanted = (maker, model, SHAPE, groups, self.macs, self.plans, self.seed)
                before, after = pool.submit(submodels.peak, *wanted).result()
            figures |= {f"{prefix}peak_rss_bytes": after, f"{prefix}added_rss_bytes": after - before}
        return figures


def _speeds(base: Any, plans: list[Any], repetitions: int, on_phase: OnPhase) -> dict[str, float]:
    """Take medians over repetitions of whole batches, both makers by turns: what a maker leaves behind to be freed or
    collected within its batch counts, what it leaves after it does not.
    """
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
