"""Put a run together, on devices, in simulations and in benchmarks alike."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.serverapp import Grid

from fedcaptor.common import tiers
from fedcaptor.common.config import Config, Privacy
from fedcaptor.common.errors import StateError
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

logger = logging.getLogger("flwr")  # Flower forwards this one to `flwr run --stream`


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
    `pictures`: folder for pictures in progress. `wait_for_nodes`: gives the phones' node ids, which the run keeps, also
    after a restart if they still exist; without it the grid's of now. `courier`, `budget`, `phases`: others than
    configured. Raises ConfigError, PrivacyError or StateError where the run cannot begin.
    """
    tiers.check(config, base.groups)
    journal = Journal(state, digest)
    try:
        nodes = sorted(grid.get_node_ids()) if wait_for_nodes is None else _first(journal, wait_for_nodes)
        budget = budget or budget_of(config, base.groups, len(nodes))
        if wait_for_nodes is not None:
            nodes = _present(journal, nodes, grid, wait_for_nodes, config.privacy, budget.cohort)
        yield Flow(
            config=config,
            base=base,
            reference=reference,
            nodes=nodes,
            journal=journal,
            courier=courier or courier_of(config, grid, digest, on_progress),
            budget=budget,
            phases=phases or phases_of(config),
            pictures=pictures,
            on_progress=on_progress,
            on_phase=on_phase,
        )
    finally:
        journal.close()


def courier_of(
    config: Config,
    grid: Grid,
    digest: str,
    on_progress: OnProgress,
    enrolled: Callable[[bytes], bool] | None = None,
    operator: Ed25519PrivateKey | None = None,
) -> Courier:
    """Make the courier that carries the run's messages, as configured. `enrolled`: as for `Masking`. `operator`: signs
    deliveries.
    """
    return Courier(
        grid,
        digest,
        config.rounds,
        masking_of(config, enrolled),
        config.privacy.dropout,
        config.rounds.grace,
        lambda done, asked: on_progress("messages", done, asked),
        operator=operator,
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


def _first(journal: Journal, wait_for_nodes: Callable[[], Iterable[int]]) -> list[int]:
    """Return the phones that the run began with: those that the journal has, or, in a new run, those that come."""

    def connected() -> Result:
        return {"nodes": sorted(wait_for_nodes())}, {}

    return list(journal.phase(0, "nodes", connected)[0]["nodes"])


def _present(
    journal: Journal,
    first: list[int],
    grid: Grid,
    wait_for_nodes: Callable[[], Iterable[int]],
    privacy: Privacy,
    cohort: int,
) -> list[int]:
    """Return the phones to ask from now on: the journal's last ones, or those of now where too few of them still exist.

    A SuperLink that forgot its nodes gives all phones new ids. The budget stays that of the phones that the run began
    with, so sums cost as much as before. Raises StateError where the phones of now are too few for its cohorts.
    """
    nodes, number = first, 1
    while (later := journal.stored(0, f"nodes-{number}")) is not None:
        nodes, number = list(later[0]["nodes"]), number + 1
    least = 1 if privacy.sums == "local" else privacy.min_cohort
    if len(set(nodes) & set(grid.get_node_ids())) >= least:
        return nodes
    present = sorted(wait_for_nodes())
    known = len(set(nodes) & set(present))
    if known >= least:
        return nodes
    fewest = max(least, math.ceil((1 - privacy.dropout) * cohort))
    if len(present) < fewest:
        raise StateError(
            f"{known} of the run's {len(nodes)} phones are connected, and {len(present) - known} others; at least "
            f"{least} of its own or {fewest} in all are needed: wait for more, or begin a run under another name"
        )
    found = known, len(nodes), len(present)
    logger.warning("%d of the run's %d phones are connected: going on with the %d of now", *found)
    return list(journal.phase(0, f"nodes-{number}", lambda: ({"nodes": present}, {}))[0]["nodes"])
