"""Ten thousand phones' answers to the server's sums, without running a phone.

What a phone adds to a sum depends neither on ε nor on who else is asked: its class usage and its filter scores are
worked out once, from what each distinct image gave. A courier then clips, quantises and rotates these vectors by the
phones' own code for every sum and adds the noise of all shares. Decoded sums are those of masked ones, for masks cancel
to the bit (tests/simulations/test_masked.py).

In memory: (M + 2) · C numbers of 8 bytes a phone (C classes, M filter clusters; 5 kB for the small CNN), and for each
distinct image F + C of 4 bytes (F filters).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.typing import NDArray

from benchmarks.last_call import remembers_last_call
from benchmarks.progress import OnPhase
from fedcaptor.client.usage import remembered
from fedcaptor.common.arrays import Floats, Images, Indices, Tensors
from fedcaptor.common.config import Config
from fedcaptor.common.distances import class_shares
from fedcaptor.common.distances import normalise as to_shares
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.messages import DeliverRequest
from fedcaptor.common.preference import layer_slices, normalise
from fedcaptor.common.privacy.noise import discrete_gaussian
from fedcaptor.common.privacy.sums import SumSpec, decode, quantised, wrapped
from fedcaptor.common.random_streams import stream_of_digest
from fedcaptor.common.softmax import softmax
from fedcaptor.common.statistics import SCORES, FilterScores, asked
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.forward import normalise as to_input
from fedcaptor.common.torch_engine.scores import image_scores
from fedcaptor.server import plausible
from fedcaptor.server.collect import Courier, Tally
from fedcaptor.server.sum_log import SumLog
from fedcaptor.simulations.local_grid import FIRST_NODE

BATCH = 32
CHUNK = 256  # phones whose vectors and noise are at hand at a time


@dataclass(frozen=True, eq=False)
class ImageOutputs:
    """What the full model makes of each distinct image: logits [U, C], and its channels' scores for the class that it
    sees, float32 [U, F].
    """

    logits: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]

    @classmethod
    def of(cls, base: BaseModel, images: Images, on_phase: OnPhase = lambda name, done, total: None) -> ImageOutputs:
        """Take one forward and one backward pass an image."""
        logits, scores = [], []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            logits.append(base.scores(part))
            x, seen = to_input(part, base.mean, base.std), torch.from_numpy(logits[-1].argmax(1))
            found = image_scores(base.module, base.groups, x, seen)
            scores.append(np.concatenate([found[group.name].numpy() for group in base.groups.prunable], axis=1))
            on_phase("images", start + len(part), len(images))
        return cls(np.concatenate(logits), np.concatenate(scores))


@dataclass(eq=False)
class Fleet:
    """`counts` [N, C]: each phone's log of what it met. `usage` [N, C]: its distribution. `scored` [N, images]: the
    images that it scores its filters with.
    """

    groups: ChannelGroups
    outputs: ImageOutputs
    counts: Floats
    scored: Indices
    usage: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.usage = np.stack([to_shares(counts, 0.0) for counts in self.counts])

    @classmethod
    def of(
        cls, directory: Path, config: Config, base: BaseModel, on_phase: OnPhase = lambda name, done, total: None
    ) -> Fleet:
        """Take all phones of a population in its first round. Raises ConfigError for what would have to be run."""
        if config.usage.corrections or config.population.law in ("owners", "partitioner"):
            raise ConfigError("usage.corrections must be 0 and population.law one of habits, zipf, dirichlet: a fleet")
        visible = directory / "population"
        use = np.load(visible / "use.npy", mmap_mode="r")[0]
        distinct, place = np.unique(use, return_inverse=True)
        place = place.reshape(use.shape)
        outputs = ImageOutputs.of(base, np.load(visible / "images.npy", mmap_mode="r")[distinct], on_phase)
        counts, before = np.empty((len(use), base.groups.classes)), np.zeros(base.groups.classes)
        for number, seen in enumerate(place):
            shares = class_shares(softmax(outputs.logits[seen]), before)
            counts[number] = remembered(before, shares, config.usage.half_life)
            on_phase("phones' usage", number + 1, len(use))
        return cls(base.groups, outputs, counts, place[:, : config.scores.images])

    def vectors(self, kind: str, numbers: Sequence[int] | Indices, tensors: Tensors) -> Floats:
        """Return what these phones add to a sum [n, length] before they clip."""
        if kind == SCORES.kind:  # for all at once, since every attack asks for them again
            return self._scores(tensors["pool"].tobytes())[numbers]
        statistic = asked(kind, tensors)
        return np.stack([statistic.vector(FleetPhone(self, int(number)), tensors) for number in numbers])

    @remembers_last_call
    def _scores(self, raw: bytes) -> Floats:
        """Return filter scores of all phones, pooled by the assignment in `raw`."""
        tensors = {"pool": np.frombuffer(raw, np.int32)}
        return np.stack([SCORES.vector(FleetPhone(self, number), tensors) for number in range(len(self.scored))])


@dataclass(frozen=True, eq=False)
class FleetPhone:
    """A phone of a fleet, as statistics ask it. Nobody personalises or measures looks."""

    fleet: Fleet
    number: int

    @property
    def groups(self) -> ChannelGroups:
        return self.fleet.groups

    def usage(self) -> Floats:
        return np.asarray(self.fleet.usage[self.number])

    def filter_scores(self) -> FilterScores:
        outputs, images = self.fleet.outputs, self.fleet.scored[self.number]
        seen = outputs.logits[images].argmax(1)
        of_class = (np.arange(self.groups.classes)[:, None] == seen).astype(np.float64)
        totals = (of_class @ outputs.scores[images]).T.astype(np.float32)
        return FilterScores(normalise([totals[rows] for rows in layer_slices(self.groups)]), of_class.any(1))

    def look(self) -> None:
        return None

    def moments(self) -> None:
        return None

    def outcome(self) -> None:
        return None

    def images(self) -> Images:
        raise NotImplementedError("a fleet keeps no images")


Alter = Callable[[str, Indices, NDArray[Any]], NDArray[Any]]
"""Takes (kind of sum, phones' numbers [n], what they are about to send [n, length]); gives what they send instead."""


def unaltered(kind: str, numbers: Indices, vectors: NDArray[Any]) -> NDArray[Any]:
    """Honest phones."""
    return vectors


def fleet_sum(
    fleet: Fleet,
    kind: str,
    spec: SumSpec,
    tensors: Tensors,
    numbers: Indices,
    rng: np.random.Generator,
    before_clip: Alter = unaltered,
    after_clip: Alter = unaltered,
    on_phone: Callable[[int], None] = lambda number: None,
) -> NDArray[Any]:
    """Return the decoded sum of these phones' vectors with the noise of each: what masked ones come to.

    `before_clip` alters vectors in the units of `clip`; `after_clip` the quanta int64 [n, length] of phones that do not
    clip, before their noise.
    """
    total = np.zeros(spec.length, np.int64)
    for part in _chunks(numbers):
        vectors = before_clip(kind, part, fleet.vectors(kind, part, tensors))
        quanta = np.stack([quantised(vector, spec, rng) for vector in vectors])
        total += after_clip(kind, part, quanta).sum(0) + noise_of(len(part), spec, rng)
        on_phone(int(part[-1]))
    return decode(wrapped(total, spec), spec)


@dataclass(frozen=True, kw_only=True)
class FleetCourier(Courier):
    """Answers the server from a fleet; the phones asked are the nodes' numbers on a local grid.

    `seed`: of rounding and noise, each sum with a stream of its own. `deliveries`: what was offered to the phones.
    """

    fleet: Fleet
    seed: tuple[int, ...]
    deliveries: list[tuple[DeliverRequest, Tensors]] = field(default_factory=list)

    def sum(
        self,
        round: int,
        kind: Any,
        spec: SumSpec,
        tensors: Tensors,
        nodes: Iterable[int],
        log: SumLog | None = None,
    ) -> tuple[NDArray[Any], Tally]:
        """Answer as the grid's phones would. Raises PrivacyError for a sum that honest ones cannot have made."""
        numbers = np.fromiter(nodes, np.int64) - FIRST_NODE
        count = len(numbers)
        rng = stream_of_digest(self.seed, spec.digest, 15)
        decoded = fleet_sum(
            self.fleet, kind, spec, tensors, numbers, rng, on_phone=lambda number: self.on_reply(number + 1, count)
        )
        plausible.check(decoded, spec, count)
        return decoded, Tally(asked=count, replies=count)

    def deliver(self, request: DeliverRequest, tensors: Tensors, nodes: Iterable[int]) -> tuple[dict[int, int], Tally]:
        """Keep the delivery; nobody personalises."""
        self.deliveries.append((request, tensors))
        count = len(list(nodes))
        return {}, Tally(asked=count, replies=count)


def noise_of(phones: int, spec: SumSpec, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the sum of so many phones' shares of the noise [length], each drawn as a phone draws it."""
    return np.asarray(discrete_gaussian(spec.share_variance, (phones, spec.length), rng).sum(0))


def _chunks(numbers: Indices) -> Iterator[Indices]:
    for start in range(0, len(numbers), CHUNK):
        yield numbers[start : start + CHUNK]
