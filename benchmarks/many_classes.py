"""What preference topics bring where a network knows many classes: which classes an owner meets next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from typer import Option

from benchmarks.command import SHARED, Benchmark
from benchmarks.inputs import NetworkBenchmark
from benchmarks.options import Model, Test, Threads, Weights
from benchmarks.progress import OnPhase
from benchmarks.record import Row, numbers
from fedcaptor.client.owner import Owner
from fedcaptor.common.arrays import Floats, Indices
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.config import Config, Population, Usage, parse
from fedcaptor.common.distances import class_shares
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.softmax import softmax
from fedcaptor.common.statistics import Statistic
from fedcaptor.server.budget import Step, SumBudget, steps_of
from fedcaptor.server.calibrate import calibrate
from fedcaptor.server.phases import cluster_by_sums
from fedcaptor.simulations.habits import shares_by_law

LIKELIEST = (10, 20, 40)
"""Numbers of classes that are believed likeliest: which later images are of one of them."""
BATCH = 64


@dataclass(frozen=True, kw_only=True)
class ManyClasses(NetworkBenchmark):
    """Which classes owners meet next, by what phones know: alone, by clusters or by topics of a private fleet.

    An owner has two interests (`population.law = "interests"`); each phone draws images. Sums are those of all phones,
    made by the phones' own code, with the noise of a fleet's budget. A sample of owners is judged on later images.
    Clusters are as many as topics.

    Example: python -m benchmarks many_classes --model benchmarks.lite0:efficientnet_lite0 --weights lite0.safetensors
    --data train.npz --test test.npz --json benchmarks/results/many_classes.json
    """

    model: Model
    weights: Weights
    data: Annotated[str, Option(help="Source of the server's images; split `train` where it has some.")]
    test: Test = None
    interests: Annotated[int, Option(min=2, help="Interests that there are."), SHARED] = 12
    interest_classes: Annotated[int, Option(min=2, help="Classes of an interest, some more frequent."), SHARED] = 34
    tail: Annotated[float, Option(min=0, help="Exponent of their frequencies by rank."), SHARED] = 0.7
    like: Annotated[
        float, Option(min=1, help="Dirichlet concentration of an owner's classes around her interests'."), SHARED
    ] = 60.0
    topics: Annotated[int, Option(min=1, max=32, help="Topics, or clusters, to begin with."), SHARED] = 16
    iterations: Annotated[int, Option(min=1, max=8, help="Private steps that find them."), SHARED] = 6
    images: Annotated[str, Option(help="Photos of a phone, one or more numbers.")] = "30"
    phones: Annotated[str, Option(help="Phones of the fleet, one or more numbers.")] = "1000,10000"
    epsilon: Annotated[str, Option(help="privacy.epsilon, one or more.")] = "8"
    draws: Annotated[int, Option(min=1, help="Times that interests, owners, photos and noise are drawn.")] = 1
    seed: Annotated[int, Option(min=0, help="Of the first draw; the next ones count on.")] = 0
    judged: Annotated[int, Option(min=1, help="Owners that are judged."), SHARED] = 250
    later: Annotated[int, Option(min=1, help="Later images of each of these."), SHARED] = 60
    threads: Threads = 1

    def row_keys(self) -> list[Row]:
        wanted = [
            (images, phones, float(epsilon), seed)
            for seed in range(self.seed, self.seed + self.draws)
            for images in numbers(self.images)
            for phones in numbers(self.phones)
            for epsilon in self.epsilon.split(",")
        ]
        return [{"images": i, "phones": p, "epsilon": e, "seed": s} for i, p, e, s in wanted]

    def shared(self) -> dict[str, Any]:
        return {**Benchmark.shared(self), "model": self.model, "outputs": self.inputs.base.groups.classes}

    @cached_property
    def answers(self) -> Answers:
        """The network's answers to the server's images, and to photos that phones meet now or later."""
        base, splits = self.inputs.base, self.inputs.splits
        now = np.random.default_rng(0).permutation(len(splits.test.y)) % 3 < 2
        train, test = (
            np.concatenate([base.scores(part.x[i : i + BATCH]) for i in range(0, len(part.y), BATCH)])
            for part in (splits.train, splits.test)
        )
        calibration = calibrate(train, splits.train.y)
        return Answers(base.groups, base.output_weights, calibration, test, splits.test.y, now)

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase) -> dict[str, Any]:
        return measured(self, key, self.answers, on_phase)


@dataclass(frozen=True, eq=False)
class Answers:
    """Hold a network's logits [N, C] of photos with labels [N], those that are met `now` [N] and those met later."""

    groups: ChannelGroups
    output_weights: Floats
    calibration: Calibration
    logits: Floats
    labels: Indices
    now: Any

    def drawn(self, owner: Floats, count: int, now: bool, rng: np.random.Generator) -> Indices:
        """Draw photos by the class shares [C] of their owner."""
        classes = rng.choice(len(owner), count, p=owner)
        return np.array([rng.choice(self._places[now][c]) for c in classes])

    @cached_property
    def _places(self) -> dict[bool, list[Indices]]:
        classes = range(self.groups.classes)
        return {
            part: [np.flatnonzero((self.labels == c) & (self.now == part)) for c in classes] for part in (True, False)
        }


@dataclass(frozen=True, eq=False)
class UsagePhone:
    """Answer a statistic of usage."""

    groups: ChannelGroups
    shares: Floats

    def usage(self) -> Floats:
        return self.shares


def measured(settings: ManyClasses, key: Mapping[str, Any], answers: Answers, on_phase: OnPhase) -> dict[str, Any]:
    """Return one row: what each arm knows of its owners."""
    rng = np.random.default_rng([key["seed"], key["images"]])
    phones, shares, met = [], [], []
    nothing = np.zeros(answers.groups.classes)
    for number, owner in enumerate(_owners(settings, answers.groups.classes, key)):
        photos = answers.drawn(owner, key["images"], True, rng)
        usage = class_shares(softmax(answers.logits[photos]), nothing).mean(0)
        phones.append(UsagePhone(answers.groups, usage))
        if number < settings.judged:
            shares.append(owner)
            met.append(photos)
        on_phase("phones", number + 1, key["phones"])
    later = [answers.drawn(owner, settings.later, False, rng) for owner in shares]
    arms = {"true": [_judged(answers, _known(owner), own) for owner, own in zip(shares, later, strict=True)]}
    for arm, method, noise in (
        ("alone", "", False),
        ("kmeans", "kmeans", True),
        ("topics", "topics", True),
        ("topics_open", "topics", False),
    ):
        found = nothing[None, :][:0]
        if method:
            found = _federated(_config(settings, method, key["epsilon"], noise), answers, phones, rng, on_phase)
        arms[arm] = [
            _judged(answers, _estimated(answers, photos, found, method == "topics"), own)
            for photos, own in zip(met, later, strict=True)
        ]
    return {"arms": {arm: _mean(figures) for arm, figures in arms.items()}}


def _owners(settings: ManyClasses, classes: int, key: Mapping[str, Any]) -> Floats:
    """Return the class shares [phones, classes] of all owners."""
    population = Population(
        law="interests",
        phones=key["phones"],
        groups=settings.interests,
        classes_max=settings.interest_classes,
        exponent=settings.tail,
        concentration=settings.like,
    )
    return np.asarray(shares_by_law(population, classes, 1, key["seed"])[0])


def _config(settings: ManyClasses, method: str, epsilon: float, noise: bool) -> Config:
    given = {
        "clusters": {"k": settings.topics, "iterations": settings.iterations, "method": method},
        "privacy": {"epsilon": epsilon, "noise": noise},
        "scores": {"enabled": False},
    }
    return parse(given)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Stand for a run in the phase that clusters phones: each sum is that of all phones, with its noise."""

    config: Config
    base: Answers
    budget: SumBudget
    phones: Sequence[UsagePhone]
    rng: np.random.Generator
    on_phase: OnPhase

    def steps(self, round: int, *statistics: Statistic) -> list[Step]:
        return [step for step in steps_of(self.config, round) if step.statistic in statistics]

    def sum(self, step: Step, tensors: Mapping[str, Any], blocks: int = 1) -> Any:
        deviation = self.budget.spec(step, blocks).deviation
        vector = np.zeros(step.statistic.length(self.base.groups, blocks))
        for phone in self.phones:
            vector += step.statistic.vector(phone, tensors)  # type: ignore[arg-type]
        self.on_phase(f"{self.config.clusters.method} {step.index}", 1, 1)
        return step.statistic.decode(vector + self.rng.normal(0, deviation, len(vector)), self.base.groups)


def _federated(
    config: Config, answers: Answers, phones: Sequence[UsagePhone], rng: np.random.Generator, on_phase: OnPhase
) -> Floats:
    """Return centroids or topics [K, C] of private sums over all phones, as the server makes them."""
    sums = _Sums(config, answers, SumBudget(config, answers.groups, len(phones)), phones, rng, on_phase)
    return cluster_by_sums(sums, 1, None, np.zeros(0))[0]  # type: ignore[arg-type]


def _known(owner: Floats) -> Floats:
    return np.maximum(owner, 1e-6)


def _estimated(answers: Answers, photos: Indices, found: Floats, mixed: bool) -> Floats:
    likelihoods = answers.calibration.likelihoods(answers.logits[photos])
    return Owner.of(likelihoods, np.zeros(answers.groups.classes), found, Usage(), mixed).usage


def _judged(answers: Answers, usage: Floats, photos: Indices) -> dict[str, float]:
    """Judge a belief about an owner's usage [C] by later photos."""
    joint, labels = answers.calibration.likelihoods(answers.logits[photos]) * usage, answers.labels[photos]
    order = np.argsort(-usage, kind="stable")
    covered = {f"covered_{count}": float(np.isin(labels, order[:count]).mean()) for count in LIKELIEST}
    own = order[: LIKELIEST[-1]]
    limited = float((own[joint[:, own].argmax(1)] == labels).mean())
    return {"accuracy": float((joint.argmax(1) == labels).mean()), **covered, "limited": limited}


def _mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([each[name] for each in figures])), 4) for name in figures[0]}
