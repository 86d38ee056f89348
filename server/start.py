"""Put a run together, on devices, in simulations and in benchmarks alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.serverapp import Grid

from fedcaptor.common import tiers
from fedcaptor.common.config import Config
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.progress import OnProgress
from fedcaptor.common.statistics import BUILT_IN, registered
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.server.budget import SumBudget
from fedcaptor.server.collect import Courier
from fedcaptor.server.flow import Budget, Flow, OnPhase, Phases
from fedcaptor.server.journal import Journal, Result
from fedcaptor.server.local import LocalBudget
from fedcaptor.server.masked import masking_of
from fedcaptor.server.phases import phases_of
from fedcaptor.server.planning import Reference


@contextmanager
def open_run(
    config: Config,
    base: BaseModel,
    reference: Reference,
    grid: Grid,
    *,
    digest: str,
    state: str,
    pictures: Path,
    wait_for_nodes: Callable[[], Iterable[int]] | None = None,
    courier: Courier | None = None,
    budget: Budget | None = None,
    phases: Phases | None = None,
    on_progress: OnProgress = lambda phase, done, total: None,
    on_phase: OnPhase = lambda record: None,
) -> Iterator[Flow]:
    """Open a run over the grid's phones, ready to `run()`; its journal is closed when the block ends.

    `reference`: the server's own labelled images. `digest`: of `run_digest`. `state`: URL of the state database.
    `pictures`: folder for pictures in progress. `wait_for_nodes`: gives the phones' node ids, which the run keeps for
    good, also after a restart; without it the grid's of now. `courier`, `budget`, `phases`: others than configured.
    Raises ConfigError, PrivacyError or StateError where the run cannot begin.
    """
    tiers.check(config, base.groups)
    journal = Journal(state, digest)
    try:
        nodes = sorted(grid.get_node_ids()) if wait_for_nodes is None else _kept(journal, wait_for_nodes)
        yield Flow(
            config=config,
            base=base,
            reference=reference,
            nodes=nodes,
            journal=journal,
            courier=courier or courier_of(config, grid, digest, on_progress),
            budget=budget or budget_of(config, base.groups, len(nodes)),
            phases=phases or phases_of(config),
            pictures=pictures,
            on_progress=on_progress,
            on_phase=on_phase,
        )
    finally:
        journal.close()


def courier_of(config: Config, grid: Grid, digest: str, on_progress: OnProgress) -> Courier:
    """Make the courier that carries the run's messages, as configured."""
    return Courier(
        grid,
        digest,
        config.rounds,
        masking_of(config),
        config.privacy.dropout,
        config.rounds.grace,
        lambda done, asked: on_progress("messages", done, asked),
    )


def budget_of(config: Config, groups: ChannelGroups, phones: int) -> Budget:
    """Make the privacy budget of a run over so many phones. Raises PrivacyError when it cannot be met."""
    if config.privacy.sums == "local":
        return LocalBudget.of(config.privacy, groups.classes, phones, config.rounds.cohort)
    return SumBudget(config, groups, phones)


def run_digest(config: Config, base: BaseModel, name: object) -> str:
    """Return the SHA-256 (hex) that names a run: of configuration, network, weights, its name or number of phones, and
    the statistics that were added to the built-in ones.

    Phones answer a question alike when it is asked again in a run.
    """
    added = sorted(statistic.name for statistic in registered() if statistic not in BUILT_IN)
    parts = config.digest, base.groups.digest, base.weights_digest, name, *added
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def _kept(journal: Journal, wait_for_nodes: Callable[[], Iterable[int]]) -> list[int]:
    """Return the run's phones: those that the journal has, or, in a new run, those that come."""

    def connected() -> Result:
        return {"nodes": sorted(wait_for_nodes())}, {}

    return [int(node) for node in journal.phase(0, "nodes", connected)[0]["nodes"]]
