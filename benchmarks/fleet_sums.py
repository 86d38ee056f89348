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
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from numpy.typing import NDArray

from benchmarks.last_call import remembers_last_call
from benchmarks.progress import OnPhase
from fedcaptor.client.usage import remembered
from fedcaptor.common.arrays import Array, Floats, Images, Indices, Tensors
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
    def of(
        cls,
        base: BaseModel,
        images: Images,
        on_phase: OnPhase = lambda name, done, total: None,
        scored: bool = True,
    ) -> ImageOutputs:
        """Take one forward and, where filters are `scored`, one backward pass an image."""
        logits, scores = [], []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            logits.append(base.scores(part))
            if scored:
                x, seen = to_input(part, base.mean, base.std), torch.from_numpy(logits[-1].argmax(1))
                found = image_scores(base.module, base.groups, x, seen)
                scores.append(np.concatenate([found[group.name].numpy() for group in base.groups.prunable], axis=1))
            on_phase("images", start + len(part), len(images))
        return cls(np.concatenate(logits), np.concatenate(scores) if scored else np.zeros((0, 0), np.float32))

    @classmethod
    def joined(cls, parts: Sequence[ImageOutputs]) -> ImageOutputs:
        """Return those of all parts, one after the other."""
        logits, scores = ([getattr(part, name) for part in parts] for name in ("logits", "scores"))
        return cls(np.concatenate(logits), np.concatenate(scores))


@dataclass(frozen=True, eq=False)
class Part:
    """Phones of a fleet that answer alike: their numbers, the base model as it is adapted to them, and all images as
    their camera takes them.
    """

    phones: Indices
    base: BaseModel
    images: Array


class OwnLooks(Protocol):
    """How phones' photos look, and what batch norms see of them; None of a phone with too few photos."""

    @property
    def looks(self) -> Sequence[Floats | None]: ...

    @property
    def moments(self) -> Sequence[Floats | None]: ...


class Answers(Protocol):
    """What adds up to sums."""

    def vectors(self, kind: str, numbers: Sequence[int] | Indices, tensors: Tensors) -> Floats:
        """Return what these phones add to a sum [n, length] before they clip."""


@dataclass(eq=False)
class Fleet:
    """`counts` [N, C]: each phone's log of what it met. `usage` [N, C]: its distribution. `scored` [N, images]: the
    images that it scores its filters with, -1 for none. `own`: its looks and moments; None: it is never asked for them.
    """

    groups: ChannelGroups
    outputs: ImageOutputs
    counts: Floats
    scored: Indices
    own: OwnLooks | None = None
    usage: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.usage = np.stack([to_shares(counts, 0.0) for counts in self.counts])

    @classmethod
    def of(
        cls, directory: Path, config: Config, base: BaseModel, on_phase: OnPhase = lambda name, done, total: None
    ) -> Fleet:
        """Take all phones of a population of one camera in its first round."""
        visible = directory / "population"
        use = np.load(visible / "use.npy", mmap_mode="r")[0]
        everybody = Part(np.arange(len(use)), base, np.load(visible / "images.npy", mmap_mode="r"))
        return cls.of_parts(config, use, [everybody], True, on_phase)

    @classmethod
    def of_parts(
        cls,
        config: Config,
        use: Indices,
        parts: Sequence[Part],
        scored: bool,
        on_phase: OnPhase,
        own: OwnLooks | None = None,
    ) -> Fleet:
        """Take phones that meet the images `use` [N, images], -1 for none, in parts. Raises ConfigError for what would
        have to be run.
        """
        if config.usage.corrections:
            raise ConfigError("usage.corrections must be 0: a fleet's owners correct nothing")
        groups, place, found, start = parts[0].base.groups, np.full(use.shape, -1), [], 0
        for part in parts:
            rows = use[part.phones]
            distinct, at = np.unique(rows[rows >= 0], return_inverse=True)
            block = place[part.phones]
            block[rows >= 0] = at + start
            place[part.phones], start = block, start + len(distinct)
            found.append(ImageOutputs.of(part.base, np.array(part.images[distinct]), on_phase, scored))
        outputs = ImageOutputs.joined(found)
        counts, before = np.empty((len(use), groups.classes)), np.zeros(groups.classes)
        for number, row in enumerate(place):
            shares = class_shares(softmax(outputs.logits[row[row >= 0]]), before)
            counts[number] = remembered(before, shares, config.usage.half_life)
            on_phase("phones' usage", number + 1, len(use))
        return cls(groups, outputs, counts, place[:, : config.scores.images], own)

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
    """A phone of a fleet, as statistics ask it. Nobody personalises."""

    fleet: Fleet
    number: int

    @property
    def groups(self) -> ChannelGroups:
        return self.fleet.groups

    def usage(self) -> Floats:
        return np.asarray(self.fleet.usage[self.number])

    def filter_scores(self) -> FilterScores:
        outputs, images = self.fleet.outputs, self.fleet.scored[self.number]
        images = images[images >= 0]
        seen = outputs.logits[images].argmax(1)
        of_class = (np.arange(self.groups.classes)[:, None] == seen).astype(np.float64)
        totals = (of_class @ outputs.scores[images]).T.astype(np.float32)
        return FilterScores(normalise([totals[rows] for rows in layer_slices(self.groups)]), of_class.any(1))

    def look(self) -> Floats | None:
        return self.fleet.own.looks[self.number] if self.fleet.own else None

    def moments(self) -> Floats | None:
        return self.fleet.own.moments[self.number] if self.fleet.own else None

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
    fleet: Answers,
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

    fleet: Answers
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
        plausible.check(decoded, spec, count, asked(kind, tensors).signed)
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
