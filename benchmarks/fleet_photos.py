"""The photos of a fleet's phones, how they look, and a base model that is adapted to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from benchmarks.fleet_sums import Fleet, FleetCourier, Part
from benchmarks.progress import OnPhase
from fedcaptor.common.adaptation import Adaptation
from fedcaptor.common.arrays import Array, Floats, Images, Indices, Tensors
from fedcaptor.common.look import look_of
from fedcaptor.common.messages import DeliverRequest
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.recalibrate import moments_on
from fedcaptor.server.collect import Tally
from fedcaptor.simulations.looks import drawn
from fedcaptor.simulations.population import images_file
from fedcaptor.simulations.runner import World

FEWEST = 2
"""Photos that a phone needs to measure its look, as `client/own_look.py` has it."""


@dataclass(eq=False)
class Photos:
    """What all phones of a population meet in its first round.

    Attributes:
        world: The population and the base model as it was shipped.
        on_phase: Reports progress.
        use: Numbers of the images that a phone learns from [N, images], -1 for none.
        cameras: The number of each phone's camera [N].
        by_camera: All images as each camera takes them.
    """

    world: World
    on_phase: OnPhase
    use: Indices = field(init=False)
    cameras: Indices = field(init=False)
    by_camera: list[Array] = field(init=False)

    def __post_init__(self) -> None:
        visible, config = self.world.directory / "population", self.world.config
        self.use = np.load(visible / "use.npy", mmap_mode="r")[0]
        self.cameras = np.array([drawn(config, number) for number in range(len(self.use))])
        files = (images_file(visible, camera) for camera in range(max(len(config.looks), 1)))
        self.by_camera = [np.load(file, mmap_mode="r") for file in files]

    def of_camera(self, camera: int) -> Images:
        """Return the distinct photos of all phones with this camera."""
        seen = np.unique(self.use[self.cameras == camera])
        return np.array(self.by_camera[camera][seen[seen >= 0]])

    def own(self, number: int) -> Images:
        """Return the photos that a phone measures its look on."""
        row = self.use[number]
        return np.array(self.by_camera[self.cameras[number]][row[row >= 0][: self.world.config.domain.images]])

    @cached_property
    def looks(self) -> list[Floats | None]:
        """Return the look of each phone's photos; None of a phone with too few."""
        found: list[Floats | None] = []
        for number in range(len(self.use)):
            photos = self.own(number)
            found.append(look_of(photos) if len(photos) >= FEWEST else None)
            self.on_phase("looks", number + 1, len(self.use))
        return found

    @cached_property
    def moments(self) -> list[Floats | None]:
        """Return the moments of the shipped model's batch norms on each phone's photos."""
        found: list[Floats | None] = []
        for number, look in enumerate(self.looks):
            found.append(None if look is None else moments_on(self.world.base, self.own(number)))
            self.on_phase("moments", number + 1, len(self.use))
        return found

    def answered(self, scored: bool, adaptation: Adaptation | None = None) -> Fleet:
        """Return the fleet with the answers of the base model, adapted as each phone's look asks."""
        bases = [self.world.base]
        chosen = np.zeros(len(self.use), dtype=np.int64)
        if adaptation is not None:
            bases = [_adapted(self.world.base, moments) for moments in adaptation.moments]
            chosen = np.array([0 if look is None else adaptation.nearest(look) for look in self.looks])
        parts = []
        for camera, look in np.unique(np.column_stack([self.cameras, chosen]), axis=0):
            phones = np.flatnonzero((self.cameras == camera) & (chosen == look))
            parts.append(Part(phones, bases[look], self.by_camera[camera]))
        return Fleet.of_parts(self.world.config, self.use, parts, scored, self.on_phase, self)


def _adapted(base: BaseModel, moments: Array) -> BaseModel:
    return base.adapted(moments) if moments.any() else base


@dataclass(eq=False)
class AdaptedFleet:
    """Answers with the shipped model until an adaptation is published, then with the adapted one.

    Attributes:
        photos: What the phones meet.
        fleet: What is answered with.
        scored: Whether filter scores will be asked for.
        adaptation: What was published; None: nothing yet.
    """

    photos: Photos
    fleet: Fleet
    scored: bool
    adaptation: Adaptation | None = None

    def vectors(self, kind: str, numbers: Sequence[int] | Indices, tensors: Tensors) -> Floats:
        """Return what these phones add to a sum [n, length] before they clip."""
        return self.fleet.vectors(kind, numbers, tensors)

    def adapt(self, adaptation: Adaptation | None) -> None:
        """Answer as adapted from now on."""
        self.adaptation = adaptation
        self.fleet = self.photos.answered(self.scored, adaptation)


@dataclass(frozen=True, kw_only=True)
class AdaptedCourier(FleetCourier):
    """Hands a published adaptation to the fleet."""

    fleet: AdaptedFleet

    def deliver(self, request: DeliverRequest, tensors: Tensors, nodes: Iterable[int]) -> tuple[dict[int, int], Tally]:
        """Keep the delivery; the fleet takes an adaptation at once."""
        if request.mode == "adapt":
            self.fleet.adapt(Adaptation.of(tensors, self.fleet.photos.world.base.groups))
        return super().deliver(request, tensors, nodes)
