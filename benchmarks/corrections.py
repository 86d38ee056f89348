"""Whether a fleet can train the shared network's output layer on what owners correct, under differential privacy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
from typer import Option

from benchmarks.command import SHARED, Benchmark, Measure
from benchmarks.federation import WORLDS, Federation
from benchmarks.fleet_outputs import Fleet, Networks
from benchmarks.last_call import remembers_last_call
from benchmarks.output_updates import Descent, Held, Single, answers, train
from benchmarks.progress import OnPhase
from benchmarks.record import Row, floats, numbers
from benchmarks.subsets import shown
from fedcaptor.common.arrays import Floats
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.privacy.zcdp import noise_multiplier
from fedcaptor.simulations.runner import World, build_world

COMPONENTS = 32
"""Principal components of what the output layer reads, of which `low-rank` trains the weights."""
FLOOR = 0.01
"""Of the largest component's variance, added to that of each before it is divided by."""


@dataclass(frozen=True)
class Part:
    """A part of the output layer that is trained.

    Attributes:
        words: What it is, for the page.
        inputs: Makes the inputs [U, K] that are weighed anew of features [U, F] and those of the server's images.
        rates: What the server multiplies the mean update by: where corrections are known, and where all labels are.
    """

    words: str
    inputs: Callable[[Single, Single], Floats]
    rates: Mapping[str, float]


def _ones(features: Single, reference: Single) -> Floats:
    return np.ones((len(features), 1))


def _scaled(features: Single, reference: Single) -> Floats:
    size = np.sqrt(np.square(reference).sum(1).mean() + 1)
    return np.asarray(np.column_stack([features, np.ones(len(features))]) / size)


def _components(features: Single, reference: Single) -> Floats:
    mean = reference.mean(0)
    variances, directions = np.linalg.eigh(np.cov(reference - mean, rowvar=False))
    variances, directions = variances[::-1][:COMPONENTS], directions[:, ::-1][:, :COMPONENTS]
    scale = np.sqrt(len(variances) * (variances + FLOOR * variances[0]))
    return np.column_stack([(features - mean) @ directions / scale, np.ones(len(features))])


PARTS: dict[str, Part] = {
    "biases": Part("its biases", _ones, {"corrections": 6.0, "labels": 2.0}),
    "low-rank": Part(
        f"weights of {COMPONENTS} principal components, and biases", _components, {"corrections": 20.0, "labels": 6.0}
    ),
    "layer": Part("all its weights and biases", _scaled, {"corrections": 20.0, "labels": 6.0}),
}
FASTER = {"many": 4.0}
"""Factor of the rates in a world: with many classes each is met, and corrected, more seldom."""
KNOWN = ("corrections", "labels")
DELTA = 1e-5


@dataclass(frozen=True, kw_only=True)
class Corrections(Benchmark):
    """What federated training of the output layer on owners' corrections brings, by world and part of the layer.

    Phones hold photos as in `federation`; of their wrong answers owners correct a share. Each phone sends one update a
    round, of its corrections and, with a small weight, of the network's own answers to its other photos. Updates are
    clipped and summed with noise for which all of ε is spent, and the server steps by the mean. Beside it are bounds:
    without noise (ε 0), and with the labels of all photos known. Where photos have looks, batch norms are those of each
    camera's photos in the clear, and each look has a layer of its own. Owners are judged on test images of their
    likeliest classes.

    The world many needs a network with 34 classes or more. Ctrl-C stops, the same command goes on.

    Example: python -m benchmarks corrections --worlds clean,looks,owners --phones 1000,10000 --seeds 0..2 --epsilon 8,0
    --json benchmarks/results/corrections.json
    """

    worlds: Annotated[str, Option(help="Worlds of `federation`, separated by commas.")] = "clean,looks,owners"
    parts: Annotated[str, Option(help="Parts of the output layer, separated by commas.")] = ",".join(PARTS)
    known: Annotated[str, Option(help="What owners tell, separated by commas.")] = ",".join(KNOWN)
    images: Annotated[str, Option(help="Photos of a phone, one or more numbers.")] = "30"
    phones: Annotated[str, Option(help="Phones of the fleet, one or more numbers.")] = "1000,10000"
    seeds: Annotated[str, Option(help="Seeds: 0..4 or 0,5,7. Phones, photos, corrections and noise follow.")] = "0"
    epsilon: Annotated[str, Option(help="ε of all rounds together, one or more; 0: no noise.")] = "8,0"
    model: Annotated[str, Option(help="Registered model, or your own as package.module:factory.")] = "small-cnn"
    weights: Annotated[Path | None, Option(help="Its weights, safetensors; the shipped ones if not given.")] = None
    data: Annotated[str, Option(help="Source of all images, with a key `split` where parts are fixed.")] = "embedded"
    corrected: Annotated[float, Option(min=0, max=1, help="Share of wrong answers that owners correct."), SHARED] = 0.03
    rounds: Annotated[int, Option(min=1, help="Rounds of updates."), SHARED] = 8
    clip: Annotated[float, Option(min=1e-6, help="Joint L2 norm of a phone's update at most."), SHARED] = 1.0
    agreed: Annotated[float, Option(min=0, help="Weight of an answer that nobody corrected."), SHARED] = 0.03
    judged: Annotated[int, Option(min=1, help="Owners that are judged."), SHARED] = 1000
    test_images: Annotated[int, Option(min=1, help="Test images of an owner."), SHARED] = 60

    def __post_init__(self) -> None:
        for text, known, what in (
            (self.worlds, ("clean", "looks", "many", "owners"), "world"),
            (self.parts, PARTS, "part"),
            (self.known, KNOWN, "known"),
        ):
            if unknown := [name for name in text.split(",") if name not in known]:
                raise ConfigError(f"{what} {unknown[0]!r} is unknown, known are {', '.join(known)}")
        if not (found := floats(self.epsilon)) or not all(0 <= value < np.inf for value in found):
            raise ConfigError(f"epsilon is {self.epsilon!r}, must be different values from 0 such as 8,0")

    def row_keys(self) -> list[Row]:
        """Return the rows seed by seed; natural owners have as many phones and photos as there are: 0 says so."""
        every = product(
            numbers(self.seeds),
            self.worlds.split(","),
            numbers(self.images),
            numbers(self.phones),
            self.parts.split(","),
            self.known.split(","),
            floats(self.epsilon),
        )
        names = ("seed", "world", "images", "phones", "part", "known", "epsilon")
        rows: list[Row] = [dict(zip(names, values, strict=True)) for values in every]
        own = [row | {"images": 0, "phones": 0} if WORLDS[row["world"]].own_images else row for row in rows]
        return list({tuple(row.values()): row for row in own}.values())

    def options(self) -> dict[str, Any]:
        return {**super().options(), "data": shown(self.data)}

    def world(self, key: Mapping[str, Any], folder: Path) -> World:
        """Build the population of a row, whose phones know the labels of all their photos."""
        own = WORLDS[key["world"]].own_images
        federation = Federation(
            worlds=key["world"],
            model="small-cnn" if own else self.model,
            weights=None if own else self.weights,
            data="embedded" if own else self.data,
            sample=1,
            test_images=self.test_images,
            overrides=["usage.corrections=1"],
        )
        row = {"world": key["world"], "arm": "shipped", "images": key["images"], "epsilon": None, "seed": key["seed"]}
        return build_world(federation.config(row | {"phones": key["phones"] or 240}), folder)

    @contextmanager
    def measuring(self, on_phase: OnPhase) -> Iterator[Measure]:
        with TemporaryDirectory(prefix="benchmark-") as folder:
            yield Measurement(self, Path(folder), on_phase, Networks(on_phase)).measure


@dataclass(eq=False)
class Measurement:
    """Measures rows; those that come one after the other share their population."""

    settings: Corrections
    folder: Path
    on_phase: OnPhase
    networks: Networks

    def measure(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Return the figures of one row."""
        fleet = self._fleet(*(key[name] for name in ("world", "images", "phones", "seed")))
        part, rng = PARTS[key["part"]], np.random.default_rng([key["seed"], key["phones"]])
        met, tested = (
            part.inputs(output.features, fleet.reference).astype(np.float32) for output in (fleet.met, fleet.tested)
        )
        wrong = (fleet.labels >= 0) & (fleet.met.logits.argmax(1)[fleet.photos] != fleet.labels)
        told = wrong & (rng.random(wrong.shape) < self.settings.corrected)
        labels = np.zeros(len(met), np.int64)
        labels[fleet.photos[fleet.photos >= 0]] = fleet.labels[fleet.photos >= 0]
        known = told if key["known"] == "corrections" else fleet.photos >= 0
        held = Held(fleet.photos, known, met, fleet.met.logits, labels, fleet.cameras)
        rounds, epsilon = self.settings.rounds, key["epsilon"]
        multiplier = noise_multiplier(epsilon, DELTA, rounds) if epsilon else 0.0
        rate = part.rates[key["known"]] * FASTER.get(key["world"], 1.0)
        descent = Descent(rounds, rate, self.settings.clip, self.settings.agreed, multiplier)
        self.on_phase(f"{key['part']}, {key['known']}", 0, 1)
        found = train(held, descent, rng)
        before = fleet.judged(fleet.tested.logits.astype(np.float64))
        after = fleet.judged(answers(fleet.tested.logits, tested, fleet.test_cameras, found.change))
        return {
            **{f"shipped_{among}": value for among, value in before.items()},
            **after,
            "known_labels": int(known.sum()),
            "values_trained": int(found.change.size),
            "signal": found.signal,
            "noise": found.noise,
        }

    @remembers_last_call
    def _fleet(self, world: str, images: int, phones: int, seed: int) -> Fleet:
        self.on_phase("population", 0, 1)
        key = {"world": world, "images": images, "phones": phones, "seed": seed}
        built = self.settings.world(key, self.folder / "-".join(map(str, key.values())))
        return self.networks.fleet(built, self.settings.judged)
