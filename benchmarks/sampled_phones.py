"""Some phones of a fleet, run to the end with what the server published, and judged by labels that a simulator has."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from benchmarks.fleet_server import Served
from fedcaptor.client.engine import Submodel
from fedcaptor.client.fallback import answer
from fedcaptor.client.images import ImageFeed
from fedcaptor.client.kept_models import read_models
from fedcaptor.client.learner import Learner
from fedcaptor.client.offer import read_offer
from fedcaptor.client.owner import Owner
from fedcaptor.common.adaptation import Adaptation
from fedcaptor.common.arrays import Array, Floats, Images, Indices
from fedcaptor.common.look import look_of
from fedcaptor.simulations.looks import drawn
from fedcaptor.simulations.phones import MappedFeed, phone_engine, simulated_phone
from fedcaptor.simulations.population import images_file
from fedcaptor.simulations.runner import World

_LOOKED_AT = 500  # photos that the look of a camera is taken from


@dataclass(frozen=True)
class FewPhotos:
    """Gives the first photos of a phone that is new, and none to check with."""

    feed: ImageFeed
    most: int

    def use(self, day: int) -> Images:
        return self.feed.use(day)[: self.most]

    def check(self, day: int) -> Images:
        return self.feed.check(day)[:0]

    def corrections(self, day: int) -> npt.NDArray[np.int16]:
        return self.feed.corrections(day)[: self.most]


@dataclass(frozen=True)
class Judged:
    """What a phone ends with.

    Attributes:
        accuracy: Of its answers to images of the owner's true classes, escalations included; NaN without such images.
        full: Of the full model's answers to them, as it is adapted to the phone.
        effective_macs: MACs of an answer over those of the full model, escalations included.
        kept_full: Whether the phone answers with the full model alone.
        adapted: Whether its base model is adapted to its photos.
    """

    accuracy: float
    full: float
    effective_macs: float
    kept_full: bool = False
    adapted: bool = False


def run_phones(world: World, served: Served, numbers: Iterable[int], most: int | None = None) -> Iterator[Judged]:
    """Run phones through all deliveries, the personal step included, and judge each.

    Args:
        world: The population, under the configuration that was served.
        served: What the server published.
        numbers: Of the phones.
        most: Photos of a phone, which then has none to check with; None: all of its population.

    Yields:
        What each phone ends with. Without a personal step that is the submodel of all phones, limited to its classes.
    """
    shutil.rmtree(world.directory / "phones", ignore_errors=True)
    for number in numbers:
        phone = simulated_phone(world.directory, world.config, world.base, number)
        learner = phone.learner()
        if most is not None:
            learner = replace(learner, feed=FewPhotos(learner.feed, most))
        if world.config.domain.enabled:
            learner.own_look(1)
        for request, tensors in served.deliveries:
            # A new learner has its engine anew, as for each message to a phone
            replace(phone, learner=partial(replace, learner)).deliver(request, tensors)
        test = _Test.of(world, number)
        last = replace(learner)
        judged = _by_models(last, test) if world.config.personal.enabled else _by_one(last, served, test)
        yield replace(judged, adapted=last.engine is not last.shipped)


def start_phones(
    world: World, served: Served, numbers: Iterable[int], most: int, adaptation: Adaptation | None
) -> Iterator[Judged]:
    """Judge new phones by their cluster's submodel, in the published look that is nearest to their camera's.

    They have `most` photos, and no personal step yet. Yields what each gets.
    """
    shipped, cameras = phone_engine(world.directory, world.config, world.base), _camera_looks(world)
    for number in numbers:
        camera, look, engine = drawn(world.config, number), 0, shipped
        if adaptation is not None:
            look = adaptation.nearest(cameras[camera])
        if adaptation is not None and adaptation.moments[look].any():
            engine = shipped.adapted(adaptation.moments[look].astype(np.float64))
        offer = read_offer(*served.deliveries[-1], engine, world.config.delivery).of("", look)
        assert offer.calibration is not None  # a server offers it with its clusters
        photos = MappedFeed(world.directory / "population", number, camera).use(1)[:most]
        seen = offer.calibration.likelihoods(engine.scores(photos))
        owner = Owner.of(seen, np.zeros(engine.groups.classes), offer.centroids, world.config.usage)
        submodel, test = served.models[look * len(offer.centroids) + owner.cluster], _Test.of(world, number)
        right = _limited(submodel, owner.classes, test.images)
        full = test.accuracy(engine.scores(test.images).argmax(1))
        yield Judged(test.accuracy(right), full, submodel.macs_ratio, adapted=engine is not shipped)


@dataclass(frozen=True, eq=False)
class _Test:
    """Test photos of a phone [N] with their labels, and which of them are of its owner's true classes."""

    images: Images
    labels: Indices
    own: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, world: World, number: int) -> _Test:
        oracle = world.directory / "oracle"
        row = np.load(oracle / "test.npy", mmap_mode="r")[0, number]
        row, shares = row[row >= 0], np.load(oracle / "shares.npy", mmap_mode="r")[0, number]
        labels = np.load(oracle / "labels.npy")[row]
        photos: Array = np.load(images_file(oracle, drawn(world.config, number)), mmap_mode="r")
        return cls(np.array(photos[row]), labels, shares[labels] > 0)

    def accuracy(self, answers: Indices) -> float:
        return float((answers == self.labels)[self.own].mean()) if self.own.any() else float("nan")


def _by_models(learner: Learner, test: _Test) -> Judged:
    mode = learner.config.fallback.mode
    models = read_models(learner.folder, learner.engine, mode)
    given = answer(learner.engine, models, learner.config.fallback, test.images)
    full = test.accuracy(learner.engine.scores(test.images).argmax(1))
    if models.own is None:
        return Judged(test.accuracy(given.labels), full, 1.0, kept_full=True)
    larger = models.larger.macs_ratio if models.larger else 0.0
    escalated = float(given.escalated.mean()) if len(test.images) else 0.0
    return Judged(test.accuracy(given.labels), full, models.own.macs_ratio + escalated * larger)


def _by_one(learner: Learner, served: Served, test: _Test) -> Judged:
    (submodel,), note = served.models, learner.outcome()
    own = np.array(note.classes) if note else submodel.classes
    full = test.accuracy(learner.engine.scores(test.images).argmax(1))
    return Judged(test.accuracy(_limited(submodel, own, test.images)), full, submodel.macs_ratio)


def _limited(submodel: Submodel, own: Indices, images: Images) -> Indices:
    """Return a submodel's answers [N] among the classes `own`, if it has one of them."""
    known = np.isin(submodel.classes, own)
    return np.asarray(submodel.classes[np.where(known | ~known.any(), submodel.scores(images), -np.inf).argmax(1)])


def _camera_looks(world: World) -> list[Floats]:
    folder = world.directory / "population"
    files = (images_file(folder, camera) for camera in range(max(len(world.config.looks), 1)))
    return [look_of(np.array(np.load(file, mmap_mode="r")[:_LOOKED_AT])) for file in files]
