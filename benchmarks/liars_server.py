"""The server's own flow up to its plans, over a fleet with liars; a median over cohorts in the place of its sums."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.fleet import Fleet
from benchmarks.fleet_server import not_run
from benchmarks.liars import LiarsCourier
from fedcaptor.common.arrays import Array, Floats
from fedcaptor.common.config import Config
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.torch_engine.base import Submodel
from fedcaptor.server import phases
from fedcaptor.server.budget import Step, SumBudget
from fedcaptor.server.catalogue import Catalogue
from fedcaptor.server.flow import Flow, Phases
from fedcaptor.server.record import RoundRecord
from fedcaptor.server.start import open_run, run_digest
from fedcaptor.simulations.local_grid import LocalGrid
from fedcaptor.simulations.runner import World


@dataclass(frozen=True)
class MedianSpec(SumSpec):
    """A cohort's sum, one of `cohorts` whose median times their number stands for the sum of all."""

    cohorts: int = 1

    @property
    def deviation(self) -> float:
        """Of an entry of that product: a median of normal values has π/2 times the variance of their mean."""
        return super().deviation * math.sqrt(math.pi / 2 * self.cohorts)


class MedianBudget(SumBudget):
    """Sums of `cohort` phones each at the configured ε: a phone is in one cohort of every sum."""

    def __init__(self, config: Config, groups: ChannelGroups, phones: int, cohort: int) -> None:
        rounds = config.rounds.model_copy(update={"cohort": cohort})
        super().__init__(config.model_copy(update={"rounds": rounds}), groups, phones)
        self._cohorts = phones // cohort

    def spec(self, step: Step, blocks: int = 1) -> SumSpec:
        return MedianSpec(**asdict(super().spec(step, blocks)), cohorts=self._cohorts)


@dataclass(frozen=True, eq=False)
class Poisoned:
    """`published`: None where the server stopped. `models`: none where not planned. `discarded`: share of the sums.
    `pictures`: profiles of filters, for the next server of the same seed.
    """

    published: RoundRecord | None
    models: Sequence[Submodel]
    discarded: float
    pictures: npt.NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class Lie:
    """`liars` [N]: who; `attack`: how; `cohort`: phones a sum, 0: one sum of all."""

    liars: npt.NDArray[np.bool_]
    attack: str = "none"
    cohort: int = 0


def serve_liars(
    world: World, fleet: Fleet, lie: Lie, planned: bool, pictures: npt.NDArray[np.float32] | None
) -> Poisoned:
    """One round under `world.config` with the first phones of the fleet, as many as `lie` tells of."""
    phones, base = len(lie.liars), world.base
    digest, grid = run_digest(world.config, base, phones), LocalGrid(not_run, phones)
    seed = (world.config.run.seed, phones)
    courier = LiarsCourier(
        grid, digest, world.config.rounds, None, fleet=fleet, seed=seed, attack=lie.attack, liars=lie.liars,
        cohort=lie.cohort,
    )  # fmt: skip
    known: list[npt.NDArray[np.float32]] = [] if pictures is None else [pictures]
    budget = MedianBudget(world.config, base.groups, phones, lie.cohort) if lie.cohort else None
    with (
        tempfile.TemporaryDirectory(prefix="pictures-") as folder,
        open_run(
            world.config,
            base,
            world.reference,
            grid,
            digest=digest,
            state="sqlite://",
            pictures=Path(folder),
            courier=courier,
            budget=budget,
            phases=plans_only(planned, known),
        ) as flow,
    ):
        try:
            published: RoundRecord | None = flow.run().last
        except PrivacyError:
            published = None
    models = published.catalogue.submodels(base) if published else []
    return Poisoned(published, models, float(np.mean(courier.verdicts)), known[0] if known else None)


def plans_only(planned: bool, known: list[npt.NDArray[np.float32]]) -> Phases:
    """Phases that end with plans, or with centroids where they are not `planned`; filters' profiles are `known`, or
    put there.
    """

    def prefer(flow: Flow) -> Array | None:
        if not known:
            known.append(phases.visual_profiles(flow))
        return phases.prefer_by(flow, known[0])

    def plan(flow: Flow, round: int, centroids: Floats, preference: Array | None) -> Catalogue:
        return phases.plan(flow, round, centroids, preference) if planned else Catalogue((), (), (), ())

    return Phases(
        phases.cluster_by_sums,
        prefer,
        plan,
        deliver=lambda flow, round, centroids, made, preference: 0.0,
        evaluate=lambda flow, round, centroids: None,
        collect=lambda flow, round, centroids: {},
    )
