"""How small a model gets for a class set before it gets worse: our strategies and peers, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from benchmarks.inputs import Inputs
from benchmarks.options import File, Fresh, Model, Test, Threads, Weights
from benchmarks.progress import bars
from benchmarks.record import command_line, numbers, open_record, ratios, sweep
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


def keys(
    model: str,
    sets: Sequence[Sequence[tuple[int, ...]]],
    strategies: Sequence[str],
    macs: Sequence[float],
    tune: Sequence[str],
    calibration: Sequence[int],
    seed: int,
    mixture: float | None = None,
) -> list[dict[str, Any]]:
    """Of all rows: draw by draw, so that a run that was stopped has whole draws; `sets`: class sets of each draw."""
    return [
        {
            "model": model,
            "classes": list(classes),
            "strategy": strategy,
            "macs_target": ratio,
            "tune": tuning,
            "calibration_per_class": images,
            "mixture": mixture,
            "seed": seed,
            "draw": draw,
        }
        for draw, drawn_sets in enumerate(sets)
        for classes in drawn_sets
        for images in calibration
        for strategy in strategies
        for ratio in macs
        for tuning in tune
    ]


def command(
    file: File,
    model: Model,
    weights: Weights,
    data: Annotated[
        str, typer.Option(help="Source of calibration and tuning images; split `train` where it has some.")
    ],
    test: Test = None,
    classes: Annotated[str, typer.Option(help="Needed classes, one or more numbers of them.")] = "5",
    draws: Annotated[int, typer.Option(min=1, help="Random class sets of each size.")] = 20,
    class_sets: Annotated[str | None, typer.Option(help="These sets instead, labels: 0,1,2;3,5.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Class sets and images follow from it.")] = 0,
    macs: Annotated[str, typer.Option(help="Budgets: ratios of the full model's MACs.")] = "0.5,0.3,0.2,0.1",
    strategies: Annotated[str, typer.Option(help="Any of the strategies.")] = ",".join(STRATEGIES),
    tune: Annotated[str, typer.Option(help="none, short or both.")] = ",".join(TUNE),
    calibration_per_class: Annotated[str, typer.Option(help="Unlabelled images a class, one or more numbers.")] = "50",
    mixture: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Calibrate on phone-like mixtures: Dirichlet concentration of class shares, a tenth of other classes.",
        ),
    ] = None,
    test_per_class: Annotated[
        int | None, typer.Option(min=1, help="Most test images a class; all if not given.")
    ] = None,
    tune_per_class: Annotated[int, typer.Option(min=10, help="Most images a class for short tuning.")] = 2000,
    tune_seconds: Annotated[float, typer.Option(min=1, help="Most of one tuning; of CPU with one thread.")] = 180.0,
    threads: Threads = None,
    fresh: Fresh = False,
) -> None:
    """Accuracy on needed classes at a MACs budget: our strategies, plain baselines and Torch-Pruning.

    All get the same weights, class sets, unlabelled images, budgets and tuning. Other classes, budgets, strategies and
    seeds can be added to the same file by a further command. Ctrl-C stops it, the same command goes on.

    Example: python -m benchmarks pruning --model vgg16 --weights vgg16.safetensors --data train.npz --test test.npz
    --classes 2,5,8 --draws 20 --json benchmarks/results/pruning-vgg16.json
    """
    from benchmarks.trial import Trial

    chosen, tuning = _among("strategies", strategies, STRATEGIES), _among("tune", tune, TUNE)
    budgets, calibration = ratios(macs), numbers(calibration_per_class)
    if min(calibration) < 1:
        raise ConfigError(f"calibration-per-class is {calibration_per_class}, must be at least 1: give images to see")
    inputs = Inputs.load(model, weights, data, test, threads, test_per_class)
    if class_sets is None:
        sets = inputs.sets(classes, draws, seed)
    else:
        sets = [[one] for one in given(class_sets, inputs.available)]
    settings = {
        **inputs.settings,
        "tune_per_class": tune_per_class,
        "tune_seconds": tune_seconds,
        "threads": inputs.threads,
    }
    options: dict[str, str | int | float | None] = {
        **inputs.options,
        **({"classes": classes, "draws": draws} if class_sets is None else {"class_sets": f'"{class_sets}"'}),
        "seed": seed,
        "macs": macs,
        "strategies": None if chosen == list(STRATEGIES) else strategies,
        "tune": tune,
        "calibration_per_class": calibration_per_class,
        "mixture": mixture,
        "test_per_class": test_per_class,
        "tune_per_class": tune_per_class,
        "tune_seconds": tune_seconds,
        "threads": threads,
    }
    record = open_record(file, "pruning", settings, command_line("pruning", file, **options), fresh)
    with bars("pruning") as (on_row, on_phase):
        clock = time.process_time if inputs.threads == 1 else time.monotonic  # other programs do not count
        trial = Trial(inputs.base, inputs.pool, tune_per_class, tune_seconds, on_phase, clock)
        wanted = keys(model, sets, chosen, budgets, tuning, calibration, seed, mixture)
        impossible: list[str] = []
        measure = _possible(trial.measure, impossible)
        sweep(record, file, wanted, measure, on_row)
    for reason in dict.fromkeys(impossible):
        typer.echo(f"not measured: {reason}", err=True)


def _possible(
    measure: Callable[[Mapping[str, Any]], dict[str, Any]], impossible: list[str]
) -> Callable[[Mapping[str, Any]], dict[str, Any] | None]:
    """`measure`, but None for a budget that a strategy cannot reach, with the reason in `impossible`: others may."""

    def figures(key: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            return measure(key)
        except PlanError as error:
            impossible.append(f"{key['strategy']}, classes {key['classes']}: {error}")
            return None

    return figures


def _among(option: str, text: str, known: Sequence[str]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown or len(set(names)) < len(names):
        raise ConfigError(f"{option} is {text!r}, must be different ones of {', '.join(known)}")
    return names
