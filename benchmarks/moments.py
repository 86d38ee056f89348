"""What class moments cost by number of classes: bytes, seconds to pack them and to get one usage's curves from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from typer import Option

from benchmarks.command import SHARED, Benchmark
from benchmarks.progress import OnPhase
from benchmarks.record import Row, numbers
from benchmarks.submodels import random_base
from fedcaptor.common.moments import SHARE, ClassMoments, Moments, Scatter
from fedcaptor.common.observations import consumers
from fedcaptor.common.torch_engine.class_moments import curves_for
from fedcaptor.common.torch_engine.latency import one_thread

Clock = Callable[[], float]

OBSERVATIONS = 4096
"""A synthetic class has so many at each place, as some hundred images give."""


@dataclass(frozen=True, kw_only=True)
class MomentsCost(Benchmark):
    """Bytes and seconds of class moments for 10, 100 and 1,000 classes, without looking at images.

    Moments are synthetic and of the network's widths. As many classes as a usage needs are made and timed; bytes and
    packing seconds of all classes are in proportion. Seconds are CPU seconds of the measuring thread.

    Example: python -m benchmarks moments --json benchmarks/results/moments.json
    """

    classes: Annotated[str, Option(help="Numbers of classes.")] = "10,100,1000"
    model: Annotated[str, Option(help="Registered name; its weights are random."), SHARED] = "vgg16"
    needed: Annotated[int, Option(min=1, help="Classes of the usage whose curves are timed."), SHARED] = 5
    share: Annotated[float, Option(min=0.5, max=1.0, help="Of each trace that is kept."), SHARED] = SHARE
    steepness: Annotated[float, Option(min=0.0, help="The i-th variance of a layer falls as i^-this."), SHARED] = 1.5
    seed: Annotated[int, Option(help="Weights and moments follow from it."), SHARED] = 0

    def row_keys(self) -> list[Row]:
        return [{"classes": count} for count in numbers(self.classes)]

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase, clock: Clock = time.thread_time) -> dict[str, float]:
        """Return the figures of one row, from as many classes as a usage needs."""
        classes, made = key["classes"], min(self.needed, key["classes"])
        with one_thread():
            base = random_base(self.model, (3, 32, 32), self.seed, classes=classes)
            packing, found = _synthetic(base, made, self.share, self.steepness, self.seed, clock)
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
    """Return seconds of packing, and moments at every place of the network."""
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
    """Make the scatter of a class whose variances, in random directions, fall as i^-steepness; `constant`: all are
    zero, as those of the logits' own gradients.
    """
    mean = rng.standard_normal(channels)
    if constant:
        return Scatter(OBSERVATIONS, mean, np.zeros((channels, channels)))
    directions = np.linalg.qr(rng.standard_normal((channels, channels)))[0]
    variances = (1.0 + np.arange(channels)) ** -steepness
    return Scatter(OBSERVATIONS, mean, (directions * variances) @ directions.T * OBSERVATIONS)
