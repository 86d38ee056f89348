"""The server's own flow over a fleet of phones."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Message

from benchmarks.fleet_sums import FleetCourier
from benchmarks.progress import OnPhase
from fedcaptor.common.adaptation import Adaptation
from fedcaptor.common.arrays import Array, Floats, Tensors
from fedcaptor.common.errors import StateError
from fedcaptor.common.messages import DeliverRequest
from fedcaptor.common.torch_engine.base import Submodel
from fedcaptor.server import phases
from fedcaptor.server.cluster_submodels import ClusterSubmodels
from fedcaptor.server.flow import Flow, Phases
from fedcaptor.server.record import Delivered, RoundRecord
from fedcaptor.server.start import open_run, run_digest
from fedcaptor.simulations.local_grid import LocalGrid
from fedcaptor.simulations.runner import World

Profiles = list[Array]
"""Class profiles of filters from pictures [F, classes], once a server has made them: servers of one seed share them."""

Adapt = Callable[[Flow, int], Adaptation | None]
"""A phase that adapts the base model, as `Phases.adapt`."""


@dataclass(frozen=True, eq=False)
class Served:
    """What a server ended with. `models`: each cluster's submodel. `deliveries`: what phones were offered. `epsilon`:
    spent by a phone; None without noise.
    """

    round: RoundRecord
    models: list[Submodel]
    deliveries: Sequence[tuple[DeliverRequest, Tensors]]
    epsilon: float | None


def courier_args(world: World, phones: int) -> dict[str, Any]:
    """Return how a fleet's courier is made for the first `phones` of a population."""
    config = world.config
    run, grid = run_digest(config, world.base, phones), LocalGrid(not_run, phones)
    return {"grid": grid, "run": run, "rounds": config.rounds, "masking": None, "seed": (config.run.seed, phones)}


@contextmanager
def opened(world: World, courier: FleetCourier, **options: Any) -> Iterator[Flow]:
    """Open a run over the courier's phones, in memory; `options`: of `open_run`."""
    with (
        tempfile.TemporaryDirectory(prefix="pictures-") as folder,
        open_run(
            world.config,
            world.base,
            world.reference,
            courier.grid,
            digest=courier.run,
            state="sqlite://",
            pictures=Path(folder),
            courier=courier,
            **options,
        ) as flow,
    ):
        yield flow


def serve_fleet(
    world: World,
    courier: FleetCourier,
    profiles: Profiles,
    *,
    planned: bool = True,
    delivered: bool = True,
    budget: Any = None,
    adapt: Adapt | None = None,
    on_phase: OnPhase = lambda name, done, total: None,
) -> Served:
    """Serve one round under `world.config` to the courier's phones; not `planned`, it ends with centroids, not
    `delivered`, with plans. `adapt`: another way than the server's to adapt the base model. Raises PrivacyError as the
    server does.
    """
    chosen = _phases(phases.phases_of(world.config), profiles, planned, delivered, adapt)
    with opened(world, courier, budget=budget, phases=chosen, on_progress=on_phase) as flow:
        record = flow.run()
    return Served(record.last, record.last.submodels.submodels(world.base), courier.deliveries, record.epsilon)


def _phases(whole: Phases, profiles: Profiles, planned: bool, delivered: bool, adapt: Adapt | None) -> Phases:
    """Exchange the phases that know filters' profiles already, and those that are left out."""

    def prefer(flow: Flow) -> Array | None:
        if not profiles:
            profiles.append(phases.visual_profiles(flow))
        return phases.prefer_by(flow, profiles[0])

    def no_plan(flow: Flow, round: int, centroids: Floats, preference: Array | None) -> ClusterSubmodels:
        return ClusterSubmodels((), (), (), ())

    found = replace(whole, prefer=prefer, adapt=adapt or whole.adapt)
    if not delivered:
        found = replace(found, deliver=lambda *_: Delivered(0.0), evaluate=lambda *_: None, collect=lambda *_: {})
    return found if planned else replace(found, plan=no_plan)


def not_run(message: Message, context: Context) -> Message:
    """Stand in the place of a phone."""
    raise StateError("a fleet's phones are not run: its courier answers for them")
