"""What eight bits change of a network and its submodels: bytes, seconds an image, answers, beside single precision."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Annotated, Any

import numpy as np
from typer import Option

from benchmarks.command import SHARED, Benchmark
from benchmarks.inputs import NetworkBenchmark
from benchmarks.options import Classes, Draws, Model, Test, Threads, Weights
from benchmarks.out_of_set import told_apart
from benchmarks.progress import OnPhase
from benchmarks.record import Row
from benchmarks.subsets import shown
from fedcaptor.client.engine import Submodel
from fedcaptor.client.fallback import out_of_set_score
from fedcaptor.client.onnx_engine import Network, OnnxEngine
from fedcaptor.common.arrays import Images
from fedcaptor.common.config import Fallback, Personal
from fedcaptor.common.errors import ModelError
from fedcaptor.common.planner import Budget, allocate
from fedcaptor.common.torch_engine.network_graph import network_graph

Clock = Callable[[], float]

MULTIPLE, SCORE = 8, Fallback().score


@dataclass(frozen=True, kw_only=True)
class EightBits(NetworkBenchmark):
    """A phone's programs in eight bits beside those in single precision, in one process and on one thread.

    The full model, and submodels for drawn classes as the personal step makes them. Run it for each network with the
    same --json.

    Example: python -m benchmarks eight_bits --model vgg16 --weights vgg16.safetensors --data train.npz --test test.npz
    --json benchmarks/results/eight_bits.json
    """

    model: Model
    weights: Weights
    data: Annotated[str, Option(help="Source of calibration images; split `train` where it has some.")]
    test: Test = None
    classes: Classes = "3"
    draws: Draws = 5
    seed: Annotated[int, Option(min=0, help="Class sets and images follow from it."), SHARED] = 0
    macs: Annotated[float, Option(help="Most MACs of a submodel, as a ratio of the full model's."), SHARED] = 0.3
    images: Annotated[int, Option(min=1, help="Unlabelled calibration images a class."), SHARED] = 50
    repetitions: Annotated[int, Option(min=1, help="Times that each program answers one image."), SHARED] = 200
    threads: Threads = 1
    test_per_class: Annotated[int | None, Option(min=1, help="Most test images of a class."), SHARED] = 300

    def shared(self) -> dict[str, Any]:
        return Benchmark.shared(self)  # what is the network's own is in the rows

    def row_keys(self) -> list[Row]:
        every, told = self.inputs.available.tolist(), {"model": self.model, "data": shown(self.data)}
        sets = [(0, every), *self.numbered_sets()]
        return [{**told, "classes": classes, "draw": draw} for draw, classes in sets]

    @cached_property
    def _engine(self) -> OnnxEngine:
        base = self.inputs.base
        return OnnxEngine(Network(network_graph(base), base.state, base.mean, base.std), base.groups)

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase, clock: Clock = time.thread_time) -> dict[str, Any]:
        """Return one row: seconds are CPU seconds of the measuring thread, which runs all of the programs."""
        engine, classes, test = self._engine, np.array(key["classes"]), self.inputs.splits.test
        shown_images = self.inputs.splits.sample(key["classes"], self.images, 1, (self.seed, key["draw"])).images
        submodel = engine.whole()
        if len(classes) < engine.groups.classes:
            evidence = engine.observe(classes, shown_images, seed=self.seed, rows=Personal().rows)
            budget = Budget(macs=self.macs, multiple=MULTIPLE)
            submodel = evidence.build(allocate(engine.groups, evidence.curves, classes, budget))
        start = clock()
        int8 = engine.quantised(submodel, shown_images)
        spent = clock() - start
        if int8 is None:
            raise ModelError(f"{self.model} has no eight bits: leave it out")
        single = engine.of_program(submodel.plan, engine.program(submodel))
        own = np.isin(test.y, classes)
        truth, scores = test.y[own], [model.scores(test.x) for model in (single, int8)]
        answers, int8_answers = (submodel.classes[z[own].argmax(1)] for z in scores)
        apart = [None if own.all() else told_apart(out_of_set_score(z, SCORE), own)["auroc"] for z in scores]
        seconds, int8_seconds = _seconds((single, int8), test.x[own], self.repetitions, clock)
        sizes = [
            len(submodel.network.program(submodel.classes)),
            len(engine.program(single)),
            len(engine.program(int8)),
        ]
        return {
            "macs_ratio": submodel.macs_ratio,
            "whole": submodel.macs_ratio == 1,
            **dict(zip(("single_bytes", "file_bytes", "int8_bytes"), sizes, strict=True)),
            "bytes_ratio": sizes[2] / sizes[0],
            "seconds": seconds,
            "int8_seconds": int8_seconds,
            "speedup": seconds / int8_seconds,
            "accuracy": float((answers == truth).mean()),
            "int8_accuracy": float((int8_answers == truth).mean()),
            "agreement": float((int8_answers == answers).mean()),
            "auroc": apart[0],
            "int8_auroc": apart[1],
            "test_images": len(truth),
            "calibration_images": len(shown_images),
            "quantising_seconds": spent,
        }


def _seconds(models: Sequence[Submodel], images: Images, repetitions: int, clock: Clock) -> list[float]:
    """Take the median time of one image by each model, by turns."""
    found: list[list[float]] = [[] for _ in models]
    for place in np.arange(repetitions) % len(images):
        for model, times in zip(models, found, strict=True):
            start = clock()
            model.scores(images[place : place + 1])
            times.append(clock() - start)
    return [median(times) for times in found]
