"""How small a model gets for a class set before it gets worse: our strategies and peers, in one run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any

import typer
from typer import Option

from benchmarks.command import SHARED, Measure
from benchmarks.inputs import NetworkBenchmark
from benchmarks.options import Budgets, Classes, Draws, Model, Test, Threads, Weights
from benchmarks.progress import OnPhase
from benchmarks.pruning_measurement import PruningMeasurement
from benchmarks.record import Row, numbers, ratios
from benchmarks.subsets import given
from fedcaptor.common.errors import ConfigError, PlanError

STRATEGIES = (
    "reconstruct",
    "reconstruct-agnostic",
    "reconstruct-fisher",
    "captor",
    "taylor",
    "l1",
    "random",
    "torch-pruning-taylor",
    "torch-pruning-group-norm",
    "torch-pruning-hessian",
)
TUNE = ("none", "short")
Mixture = Annotated[
    float | None,
    Option(
        min=0.01,
        help="Calibrate on phone-like mixtures: Dirichlet concentration of class shares, a tenth of other classes.",
    ),
]
Tuning = Annotated[int, Option(min=10, help="Most images a class for short tuning."), SHARED]
TuneSeconds = Annotated[float, Option(min=1, help="Most of one tuning; of CPU with one thread."), SHARED]


@dataclass(frozen=True, kw_only=True)
class Pruning(NetworkBenchmark):
    """Accuracy on target classes at a MACs budget: our strategies, plain baselines and Torch-Pruning.

    All get the same weights, class sets, unlabelled images, budgets and tuning. Other classes, budgets, strategies and
    seeds can be added to the same file by a further command. Ctrl-C stops it, the same command goes on.

    Example: python -m benchmarks pruning --model vgg16 --weights vgg16.safetensors --data train.npz --test test.npz
    --classes 2,5,8 --draws 20 --json benchmarks/results/pruning-vgg16.json
    """

    model: Model
    weights: Weights
    data: Annotated[str, Option(help="Source of calibration and tuning images; split `train` where it has some.")]
    test: Test = None
    classes: Classes = "5"
    draws: Draws = 20
    class_sets: Annotated[str | None, Option(help="These sets instead, labels: 0,1,2;3,5.")] = None
    seed: Annotated[int, Option(min=0, help="Class sets and images follow from it.")] = 0
    macs: Budgets = "0.5,0.3,0.2,0.1"
    strategies: Annotated[str, Option(help="Any of the strategies.")] = ",".join(STRATEGIES)
    tune: Annotated[str, Option(help="none, short or both.")] = ",".join(TUNE)
    calibration_per_class: Annotated[str, Option(help="Unlabelled images a class, one or more numbers.")] = "50"
    mixture: Mixture = None
    test_per_class: Annotated[int | None, Option(min=1, help="Most test images a class; all if not given.")] = None
    tune_per_class: Tuning = 2000
    tune_seconds: TuneSeconds = 180.0
    threads: Threads = None

    def __post_init__(self) -> None:
        _among("strategies", self.strategies, STRATEGIES)
        _among("tune", self.tune, TUNE)
        ratios(self.macs)
        if min(numbers(self.calibration_per_class)) < 1:
            raise ConfigError(
                f"calibration-per-class is {self.calibration_per_class}, must be at least 1: give images to see"
            )

    def shared(self) -> dict[str, Any]:
        return {**super().shared(), "threads": self.inputs.threads}

    def options(self) -> dict[str, Any]:
        every = _among("strategies", self.strategies, STRATEGIES) == list(STRATEGIES)
        left_out = ["strategies"] * every + (["classes", "draws"] if self.class_sets is not None else [])
        return {**super().options(), **dict.fromkeys(left_out)}

    def class_sets_of_draws(self) -> list[list[tuple[int, ...]]]:
        if self.class_sets is None:
            return super().class_sets_of_draws()
        return [[one] for one in given(self.class_sets, self.inputs.available)]

    def row_keys(self) -> list[Row]:
        strategies, tune = _among("strategies", self.strategies, STRATEGIES), _among("tune", self.tune, TUNE)
        columns = list(product(numbers(self.calibration_per_class), strategies, ratios(self.macs), tune))
        return [
            {
                "model": self.model,
                "classes": classes,
                "strategy": strategy,
                "macs_target": ratio,
                "tune": tuning,
                "calibration_per_class": images,
                "mixture": self.mixture,
                "seed": self.seed,
                "draw": draw,
            }
            for draw, classes in self.numbered_sets()
            for images, strategy, ratio, tuning in columns
        ]

    @contextmanager
    def measuring(self, on_phase: OnPhase) -> Iterator[Measure]:
        """Leave out budgets that a strategy cannot reach, for others may; they are told at the end."""
        clock = time.process_time if self.inputs.threads == 1 else time.monotonic  # other programs do not count
        measurement = PruningMeasurement(
            self.inputs.base, self.inputs.splits, self.tune_per_class, self.tune_seconds, on_phase, clock
        )
        unreached: list[str] = []

        def measure(key: Mapping[str, Any]) -> dict[str, Any] | None:
            try:
                return measurement.measure(key)
            except PlanError as error:
                unreached.append(f"{key['strategy']}, classes {key['classes']}: {error}")
                return None

        yield measure
        for reason in dict.fromkeys(unreached):
            typer.echo(f"not measured: {reason}", err=True)


def _among(option: str, text: str, known: Sequence[str]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) < len(names):
        raise ConfigError(f"{option} is {text!r}, must be different ones of {', '.join(known)}")
    return names
