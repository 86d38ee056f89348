"""What class moments cost by number of classes: bytes, seconds to pack them and to get one usage's curves from them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.options import File, Fresh
from benchmarks.progress import bars
from benchmarks.record import command_line, numbers, open_record, sweep
from fedcaptor.common.moments import SHARE, ClassMoments, Moments, Scatter

Clock = Callable[[], float]

OBSERVATIONS = 4096
"""Of a synthetic class at each place, as some hundred images give."""


def command(
    file: File,
    classes: Annotated[str, typer.Option(help="Numbers of classes.")] = "10,100,1000",
    model: Annotated[str, typer.Option(help="Registered name; its weights are random.")] = "vgg16",
    needed: Annotated[int, typer.Option(min=1, help="Classes of the usage whose curves are timed.")] = 5,
    share: Annotated[float, typer.Option(min=0.5, max=1.0, help="Of each trace that is kept.")] = SHARE,
    steepness: Annotated[float, typer.Option(min=0.0, help="The i-th variance of a layer falls as i^-this.")] = 1.5,
    seed: Annotated[int, typer.Option(help="Weights and moments follow from it.")] = 0,
    fresh: Fresh = False,
) -> None:
    """Bytes and seconds of class moments for 10, 100 and 1,000 classes, without looking at images.

    Moments are synthetic and of the network's widths. As many classes as a usage needs are made and timed; bytes and
    packing seconds of all classes are in proportion. Seconds are CPU seconds of the measuring thread.

    Example: python -m benchmarks moments --json benchmarks/results/moments.json
    """
    settings: dict[str, str | int | float] = {
        "model": model,
        "needed": needed,
        "share": share,
        "steepness": steepness,
        "seed": seed,
    }
    record = open_record(file, "moments", settings, command_line("moments", file, classes=classes, **settings), fresh)
    keys = [{"classes": count} for count in numbers(classes)]
    with bars("moments") as (on_row, _):
        sweep(
            record,
            file,
            keys,
            lambda key: measure(model, key["classes"], min(needed, key["classes"]), share, steepness, seed),
            on_row,
        )


def measure(
    model: str, classes: int, made: int, share: float, steepness: float, seed: int, clock: Clock = time.thread_time
) -> dict[str, float]:
    """One row, from `made` of the `classes`."""
    from benchmarks.submodels import random_base
    from fedcaptor.common.torch_engine.class_moments import curves_for
    from fedcaptor.common.torch_engine.latency import one_thread

    with one_thread():
        base = random_base(model, (3, 32, 32), seed, classes=classes)
        packing, found = _synthetic(base, made, share, steepness, seed, clock)
        start = clock()
        curves_for(base, found, np.ones(made), np.arange(made))
        curves_seconds = clock() - start
    places = [*found.inputs.values(), *found.gradients.values()]
    triangles = sum(place[0].mean.size * (place[0].mean.size + 1) for place in places)
    return {
        "bytes": found.nbytes / made * classes,
        "triangle_bytes": triangles * classes,
        "packing_seconds": packing / made * classes,
        "curves_seconds": curves_seconds,
    }


def _synthetic(
    base: Any, classes: int, share: float, steepness: float, seed: int, clock: Clock
) -> tuple[float, ClassMoments]:
    """Seconds of packing, and moments at every place of the network."""
    from fedcaptor.common.torch_engine.evidence import consumers

    rng, spent = np.random.default_rng(seed), 0.0

    def packed(channels: int, constant: bool = False) -> list[Moments]:
        nonlocal spent
        scatters = [scatter(channels, steepness, rng, constant) for _ in range(classes)]
        start = clock()
        result = [Moments.of(one, share) for one in scatters]
        spent += clock() - start
        return result

    pairs, last = consumers(base.groups), base.groups.output.producers
    inputs = {(group.name, consumer.layer): packed(group.channels) for group, consumer in pairs}
    widths = {c.layer: base.groups.tensors[f"{c.layer}.weight"][0] for _, c in pairs}
    gradients = {layer: packed(width, layer in last) for layer, width in widths.items()}
    return spent, ClassMoments("synthetic", np.full(classes, OBSERVATIONS), inputs, gradients)


def scatter(channels: int, steepness: float, rng: np.random.Generator, constant: bool = False) -> Scatter:
    """Of a class whose variances, in random directions, fall as i^-steepness; `constant`: all are zero, as those of the
    logits' own gradients.
    """
    mean = rng.standard_normal(channels)
    if constant:
        return Scatter(OBSERVATIONS, mean, np.zeros((channels, channels)))
    directions = np.linalg.qr(rng.standard_normal((channels, channels)))[0]
    variances = (1.0 + np.arange(channels)) ** -steepness
    return Scatter(OBSERVATIONS, mean, (directions * variances) @ directions.T * OBSERVATIONS)
