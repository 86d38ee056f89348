"""What adapting a network to photos of another camera brings: alone, by the look of a fleet, and by its moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from typer import Option

from benchmarks.command import SHARED, Benchmark
from benchmarks.inputs import NetworkBenchmark
from benchmarks.options import Model, Test, Threads, Weights
from benchmarks.progress import OnPhase
from benchmarks.record import Row, numbers
from benchmarks.subsets import shown
from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.config import Config, load_config
from fedcaptor.common.config.schema.simulated import strength_of
from fedcaptor.common.domain import length as moments_in
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.look import look_of
from fedcaptor.common.statistics import LOOK, MOMENTS
from fedcaptor.common.statistics.domain import look_scale
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.recalibrate import moments_on
from fedcaptor.server.adapt import HELD, MEASURED, borne_out, corrections, in_look
from fedcaptor.server.budget import SumBudget, steps_of
from fedcaptor.server.looks import next_looks
from fedcaptor.simulations.looks import corrupted

PACK = 15  # reference images a class that a phone receives


@dataclass(frozen=True)
class SampledPhone:
    """A phone as the statistics of looks ask it, with the classes of its owner."""

    groups: ChannelGroups
    classes: Indices
    photos: Images
    own_look: Floats
    own_moments: Floats

    def look(self) -> Floats:
        return self.own_look

    def moments(self) -> Floats:
        return self.own_moments


@dataclass(frozen=True, kw_only=True)
class Looks(NetworkBenchmark):
    """The full model's answers to photos of one camera, as shipped and as adapted to it.

    A sample of phones is run, each with a few of the classes; sums are those of the sample, as often as phones have the
    look, with noise of a fleet's budget, in which four looks are told apart. Run it for each network with the same
    --json. A row takes a few seconds for a small network, five minutes for VGG-16.

    Example: python -m benchmarks looks --model vgg16 --weights vgg16.safetensors --data train.npz --test test.npz
    --json benchmarks/results/looks.json
    """

    model: Model
    weights: Weights
    data: Annotated[str, Option(help="Source of the server's images; split `train` where it has some.")]
    test: Test = None
    cameras: Annotated[str, Option(help="Corruptions of a camera, joined by +; cameras are separated by commas.")] = (
        "sharp,blur=1,noise=0.1,light=0.5+contrast=0.7"
    )
    images: Annotated[str, Option(help="Photos of a phone, one or more numbers.")] = "30"
    phones: Annotated[str, Option(help="Phones of the fleet, a fourth of which have the look.")] = "1000,10000"
    epsilon: Annotated[str, Option(help="privacy.epsilon, one or more.")] = "8"
    classes: Annotated[str, Option(help="Classes of an owner."), SHARED] = "3"
    draws: Annotated[int, Option(min=1, help="Times that phones, photos and noise are drawn.")] = 1
    seed: Annotated[int, Option(min=0, help="Of the first draw; the next ones count on.")] = 0
    sample: Annotated[int, Option(min=5, help="Phones that are run."), SHARED] = 40
    judged: Annotated[int, Option(min=1, help="Phones of these that are judged alone."), SHARED] = 4
    test_images: Annotated[int, Option(min=20, help="Test images, of all classes alike."), SHARED] = 400
    threads: Threads = 1

    def shared(self) -> dict[str, Any]:
        return Benchmark.shared(self)  # what is the network's own is in the rows

    def row_keys(self) -> list[Row]:
        told = {"model": self.model, "data": shown(self.data)}
        seeds = range(self.seed, self.seed + self.draws)
        wanted = [(c, n, s) for s in seeds for c in self.cameras.split(",") for n in numbers(self.images)]
        return [{**told, "camera": camera, "images": images, "seed": seed} for camera, images, seed in wanted]

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase) -> dict[str, Any]:
        """Return one row: accuracies of the full model, among all classes and among an owner's, by arm."""
        base, rng = self.inputs.base, np.random.default_rng([key["seed"], key["images"]])
        camera = _corruptions(key["camera"])
        train, test = self.inputs.splits.train, self.inputs.splits.test
        chosen = _alike(test.y, self.test_images, rng)
        phones = self._sampled(np.setdiff1d(np.arange(len(test.y)), chosen), key["images"], camera, rng, on_phase)
        judge = _Judge(
            corrupted(test.x[chosen], camera, rng), test.y[chosen], [p.classes for p in phones[: self.judged]]
        )
        server = _alike(train.y, MEASURED + HELD, rng)
        source = look_of(train.x[server])
        measured, held = np.split(rng.permutation(server), [MEASURED])
        pack = train.x[_alike(train.y, PACK * len(np.unique(train.y)), rng)]
        arms = {"shipped": judge.of(base)}
        for name in ("own_norms", "own_look"):
            found = []
            for number, phone in enumerate(phones[: self.judged]):
                of_look = in_look(pack, look_of(pack), phone.own_look) if name == "own_look" else phone.photos
                found.append(judge.of(base.adapted(moments_on(base, of_look)), number))
            arms[name] = tuple(np.mean(found, 0))
        pooled = np.concatenate([phone.photos for phone in phones])[:MEASURED]
        arms["pooled"] = judge.of(base.adapted(moments_on(base, pooled)))
        for size in numbers(self.phones):
            for epsilon in map(float, self.epsilon.split(",")):
                budget = _budget(base.groups, size, epsilon)
                look = _noisy_look(budget, base.groups, phones, source, size, rng)
                expected = moments_on(base, in_look(train.x[measured], source, look))
                correction = _noisy_correction(budget, base.groups, phones, look, expected, size, rng)
                rendered = in_look(train.x[held], source, look)
                for arm, moments in (("look", np.zeros(len(expected))), ("moments", correction)):
                    kept, _ = borne_out(base, rendered, train.y[held], expected, moments)
                    arms[f"{arm}-{size}-{epsilon:g}"] = judge.of(base.adapted(kept))
        return {"arms": {arm: {"all": float(a), "own": float(o)} for arm, (a, o) in arms.items()}}

    def _sampled(
        self, places: Indices, images: int, camera: Sequence[str], rng: np.random.Generator, on_phase: OnPhase
    ) -> list[SampledPhone]:
        base, test = self.inputs.base, self.inputs.splits.test
        found = []
        for number in range(self.sample):
            classes = np.sort(rng.choice(np.unique(test.y), int(self.classes), replace=False))
            own = rng.choice(places[np.isin(test.y[places], classes)], images)
            photos = corrupted(test.x[own], camera, rng)
            found.append(SampledPhone(base.groups, classes, photos, look_of(photos), moments_on(base, photos)))
            on_phase("phones", number + 1, self.sample)
        return found


@dataclass(frozen=True)
class _Judge:
    """Judge a full model by photos of the camera, among all classes and among those of owners."""

    photos: Images
    labels: Indices
    owners: Sequence[Indices]

    def of(self, base: BaseModel, owner: int | None = None) -> tuple[float, float]:
        """Return accuracies among all classes and among the classes of one owner, or the mean over all of them."""
        scores = base.scores(self.photos)
        limited = []
        for classes in self.owners if owner is None else [self.owners[owner]]:
            own = np.isin(self.labels, classes)
            limited.append((classes[scores[own][:, classes].argmax(1)] == self.labels[own]).mean())
        return float((scores.argmax(1) == self.labels).mean()), float(np.mean(limited))


def _corruptions(camera: str) -> list[str]:
    found = [part for part in camera.split("+") if part != "sharp"]
    try:
        for each in found:
            strength_of(each)
    except ValueError as error:
        raise ConfigError(f"camera {camera!r}: {error}") from None
    return found


def _alike(labels: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Draw places of about `count` images, as many of each class."""
    classes = np.unique(labels)
    each = max(count // len(classes), 1)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:each] for c in classes])


def _config(epsilon: float = 8.0) -> Config:
    return load_config(None, ["domain.enabled=true", "domain.moments=true", f"privacy.epsilon={epsilon}"])


def _budget(groups: ChannelGroups, phones: int, epsilon: float) -> SumBudget:
    return SumBudget(_config(epsilon), groups, phones)


def _noisy_look(
    budget: SumBudget,
    groups: ChannelGroups,
    phones: Sequence[SampledPhone],
    source: Floats,
    size: int,
    rng: np.random.Generator,
) -> Floats:
    """Return the look that the server makes of the last sum, over a fourth of `size` phones."""
    config = _config()
    step = [step for step in steps_of(config, 1) if step.statistic is LOOK][-1]
    own = [LOOK.vector(phone, {"look_source": source, "looks": source[None]}) for phone in phones]  # type: ignore[arg-type]
    deviation = budget.spec(step, config.domain.looks).deviation
    total = np.mean(own, 0) * size / 4 + rng.normal(0, deviation, len(own[0]))
    looks, _ = next_looks(LOOK.decode(total, groups), deviation, look_scale(groups), 1)
    return np.asarray(source + looks[0])


def _noisy_correction(
    budget: SumBudget,
    groups: ChannelGroups,
    phones: Sequence[SampledPhone],
    look: Floats,
    expected: Floats,
    size: int,
    rng: np.random.Generator,
) -> Floats:
    """Return what the sum of moments over a fourth of `size` phones adds to the expected ones."""
    if not moments_in(groups.tensors):
        return expected
    config = _config()
    step = next(step for step in steps_of(config, 1) if step.statistic is MOMENTS)
    tensors = {"looks": look[None], "expected": expected[None]}
    own = [MOMENTS.vector(phone, tensors) for phone in phones]  # type: ignore[arg-type]
    deviation = budget.spec(step, config.domain.looks).deviation
    total = np.mean(own, 0) * size / 4 + rng.normal(0, deviation, len(own[0]))
    return np.asarray(corrections(MOMENTS.decode(total, groups), deviation, groups)[0])
