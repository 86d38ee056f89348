"""Put a run together, on devices, in simulations and in benchmarks alike."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.serverapp import Grid

from fedcaptor.common import tiers
from fedcaptor.common.config import Config, Privacy
from fedcaptor.common.errors import ConfigError, PostponedError
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
    clock: Callable[[], float] = time.time,
    on_progress: OnProgress = lambda phase, done, total: None,
    on_phase: OnPhase = lambda record: None,
) -> Iterator[Flow]:
    """Open a run over the grid's phones, ready to `run()`; its journal is closed when the block ends.

    `reference`: the server's own labelled images. `digest`: of `run_digest`. `state`: URL of the state database.
    `pictures`: folder for pictures in progress. `wait_for_nodes`: gives the phones' node ids when a round begins, which
    the round keeps, also after a restart if they still exist; without it the grid's of now. `courier`, `budget` (of the
    first round), `phases`: others than configured. `clock`: seconds since 1970. Raises ConfigError, PrivacyError or
    StateError where the run cannot begin.
    """
    tiers.check(config, base.groups)
    if config.domain.enabled and reference.synthetic:
        raise ConfigError(
            "domain.enabled is true, but the server's images are synthetic: they do not tell how photos differ from "
            "what the network was trained on; set it to false, or give photos"
        )
    journal = Journal(state, digest, clock)

    def phones_of(round: int, budget_of_nodes: Callable[[Sequence[int]], Budget]) -> tuple[Sequence[int], Budget]:
        if wait_for_nodes is None:
            nodes = sorted(grid.get_node_ids())
            return nodes, budget_of_nodes(nodes)
        return _phones_of(journal, round, budget_of_nodes, grid, wait_for_nodes, config.privacy)

    try:
        nodes, found = phones_of(1, lambda nodes: budget or budget_of(config, base.groups, len(nodes)))
        yield Flow(
            config=config,
            base=base,
            reference=reference,
            nodes=nodes,
            journal=journal,
            courier=courier or courier_of(config, grid, digest, on_progress),
            budget=found,
            phones_of=phones_of,
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


def least_phones(privacy: Privacy) -> int:
    """Return the fewest phones that any round needs."""
    return 1 if privacy.sums == "local" else privacy.min_cohort


def run_digest(config: Config, base: BaseModel, name: object) -> str:
    """Return the SHA-256 (hex) that names a run: of configuration, network, weights, its name or number of phones, and
    the statistics that were added to the built-in ones.

    Phones answer a question alike when it is asked again in a run.
    """
    added = sorted(statistic.name for statistic in registered() if statistic not in BUILT_IN)
    parts = config.digest, base.groups.digest, base.weights_digest, name, *added
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def _phones_of(
    journal: Journal,
    round: int,
    budget_of_nodes: Callable[[Sequence[int]], Budget],
    grid: Grid,
    wait_for_nodes: Callable[[], Iterable[int]],
    privacy: Privacy,
) -> tuple[Sequence[int], Budget]:
    """Return the phones of a round and its budget: those that the journal has, or, in a new round, those that come.

    They are stored only if a budget can be made of them.
    """

    def connected() -> Result:
        nodes = sorted(wait_for_nodes())
        budget_of_nodes(nodes)
        logger.info("round %d begins with %d phones", round, len(nodes))
        return {"nodes": nodes}, {}

    first = list(journal.phase(round, "nodes", connected)[0]["nodes"])
    budget = budget_of_nodes(first)
    if journal.stored(round, "end") is not None:
        return first, budget
    return _present(journal, round, first, grid, wait_for_nodes, privacy, budget.cohort), budget


def _present(
    journal: Journal,
    round: int,
    first: list[int],
    grid: Grid,
    wait_for_nodes: Callable[[], Iterable[int]],
    privacy: Privacy,
    cohort: int,
) -> list[int]:
    """Return the phones to ask from now on: the journal's last ones, or those of now where too few of them still exist.

    A SuperLink that forgot its nodes gives all phones new ids. The budget stays that of the phones that the round began
    with, so its sums cost as much as before. Raises PostponedError where the phones of now are too few for its cohorts.
    """
    nodes, number = first, 1
    while (later := journal.stored(round, f"nodes-{number}")) is not None:
        nodes, number = list(later[0]["nodes"]), number + 1
    least = least_phones(privacy)
    if len(set(nodes) & set(grid.get_node_ids())) >= least:
        return nodes
    present = sorted(wait_for_nodes())
    known = len(set(nodes) & set(present))
    if known >= least:
        return nodes
    fewest = max(least, math.ceil((1 - privacy.dropout) * cohort))
    if len(present) < fewest:
        raise PostponedError(
            "phones",
            f"{known} of the {len(nodes)} phones of round {round} are connected, and {len(present) - known} others; at "
            f"least {least} of its own or {fewest} in all are needed: start the run again when more are connected",
        )
    found = known, len(nodes), round, len(present)
    logger.warning("%d of the %d phones of round %d are connected: going on with the %d of now", *found)
    return list(journal.phase(round, f"nodes-{number}", lambda: ({"nodes": present}, {}))[0]["nodes"])
