"""Run the server of real devices as a Flower app, see deploy/flower-app. TLS and authentication are Flower's.

A run that was stopped goes on when it is started again with the same name, configuration and state database. So does
one that was started for some rounds: a scheduler may start one round at a time, for as long as there are phones.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedcaptor.common.config import Config, load_config
from fedcaptor.common.data.source import load
from fedcaptor.common.errors import ConfigError, FedcaptorError, PostponedError
from fedcaptor.common.flower import FAILED, POSTPONED
from fedcaptor.common.secure.keys import identity_of
from fedcaptor.common.secure.register import Register, enrolled_by, operator_of, signing_key
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.server.database import STATE, url_of
from fedcaptor.server.monitor import Monitor, described
from fedcaptor.server.planning import Reference
from fedcaptor.server.record import RunRecord
from fedcaptor.server.start import courier_of, least_phones, open_run, run_digest

logger = logging.getLogger("flwr")  # Flower forwards this one to `flwr run --stream`

SETTLED_SECONDS = 1.0
SIGNING_KEY = "FEDCAPTOR_SIGNING_KEY"
"""The environment variable with the path of the operator's private key, which signs deliveries."""


@dataclass(frozen=True)
class Settings:
    """Hold the run configuration of deploy/flower-app, checked."""

    config: Config
    name: str
    folder: Path
    state: str = field(repr=False)
    weights: Path
    reference: str
    nodes: int
    enrolled: Register | None
    operator: Ed25519PrivateKey | None = None
    rounds: int = 0

    @classmethod
    def of(cls, run_config: Mapping[str, Any]) -> Settings:
        """Read and check Flower's run configuration, and from the environment what is no phone's business: the state
        database's URL and the key that signs deliveries.

        Raises ConfigError naming key and remedy.
        """
        if run_config.get("state"):
            raise ConfigError(
                "state is given in the run configuration, which every phone receives: leave it out, and set the "
                f"environment variable {STATE} of flower-superlink (or of its flwr-serverapp) to the URL"
            )
        for key in ("config", "folder"):
            if not Path(str(run_config.get(key, ""))).is_absolute():
                raise ConfigError(f"{key} is {run_config.get(key, '')!r}, must be an absolute path on the server")
        config = load_config(Path(str(run_config["config"])))
        if not config.privacy.noise and not config.testing.small_cohorts:
            raise ConfigError("privacy.noise is false, real phones need noise: set it to true")
        config.privacy.require_protected()
        if config.delivery.answer_seconds >= config.rounds.deadline:
            raise ConfigError(
                f"delivery.answer_seconds is {config.delivery.answer_seconds:g}, no phone would answer within "
                f"rounds.deadline, {config.rounds.deadline:g}: lower it or raise the deadline"
            )
        rounds = int(run_config.get("rounds", 0))
        if rounds < 0 or rounds == config.run.rounds == 0:
            raise ConfigError(
                f"rounds is {rounds}, must be 0 (all that are left) or more, and with run.rounds 0, which has no last "
                "one, at least 1: set how many rounds this start of the app runs"
            )
        weights = str(run_config.get("weights", "")) or config.model.weights
        if not weights:
            raise ConfigError("weights is empty: give the base model's file, written by `fedcaptor train`")
        folder, name = Path(str(run_config["folder"])), str(run_config.get("name", "run"))
        return cls(
            config,
            name,
            folder,
            url_of(os.environ[STATE], name) if os.environ.get(STATE) else f"sqlite:///{folder / 'state.db'}",
            Path(weights),
            str(run_config.get("reference", "")) or config.data.reference or config.data.source,
            int(run_config.get("nodes", 1)),
            enrolled_by(run_config),
            _operator(run_config),
            rounds,
        )


def _operator(run_config: Mapping[str, Any]) -> Ed25519PrivateKey | None:
    """Return the key that signs deliveries, None where none is given. Raises ConfigError unless it is that of the run
    configuration's `operator`, if this is given.
    """
    path, known = os.environ.get(SIGNING_KEY), operator_of(run_config)
    if not path:
        return None
    key = signing_key(Path(path))
    if known not in (None, identity_of(key)):
        raise ConfigError(
            f"{SIGNING_KEY} holds the key of {identity_of(key).hex()}, the run configuration's operator is "
            f"{known.hex()}: phones that know this one would refuse all deliveries; give its key"
        )
    return key


def wait_for_nodes(
    grid: Grid,
    enough: int,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Return sorted ids of the connected nodes, once there are `enough` and no more come for `SETTLED_SECONDS`.

    Raises PostponedError when fewer are connected after `seconds`.
    """
    end, since, seen = clock() + seconds, clock(), -1
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) != seen:
            seen, since = len(nodes), clock()
        if seen >= max(enough, 1) and clock() - since >= SETTLED_SECONDS:
            return nodes
        if clock() >= end:
            raise PostponedError(
                "phones", f"{seen} phones are connected after {seconds:.0f} s, {max(enough, 1)} at least are needed"
            )
        sleep(min(0.2, seconds))


def run_server(settings: Settings, grid: Grid) -> RunRecord:
    """Run the rounds that are due, over the phones that are connected when each begins, and write a snapshot after each
    phase.
    """
    config, folder = settings.config, settings.folder
    enough = max(settings.nodes, least_phones(config.privacy))
    folder.mkdir(parents=True, exist_ok=True)
    data = load(settings.reference)
    _, height, width, channels = data.x.shape
    base = BaseModel.load(settings.weights, config.model.name, (channels, height, width))
    digest = run_digest(config, base, settings.name)

    def log(phase: str, done: int, total: int) -> None:
        if done in (1, total):
            logger.info("%s %d of %d", phase, done, total)

    model = described(config, base)
    enrolled = None if settings.enrolled is None else len(settings.enrolled)
    monitor = Monitor(folder, digest, config, settings.weights.stat().st_size, False, model, enrolled)
    activity = monitor.activity
    courier = replace(
        courier_of(config, grid, digest, log, settings.enrolled, settings.operator),
        on_reply=lambda done, asked: log(activity.now.name, done, asked),
        activity=activity,
    )
    with (
        monitor.watching(),
        open_run(
            config,
            base,
            Reference.of(data),
            grid,
            digest=digest,
            state=settings.state,
            pictures=folder / "pictures",
            wait_for_nodes=lambda: wait_for_nodes(grid, enough, config.rounds.deadline),
            courier=courier,
            on_progress=log,
            on_phase=monitor.running,
        ) as flow,
    ):
        logger.info("run %s, weights %s", digest[:12], base.weights_digest)
        if settings.operator is None:
            logger.info("deliveries are not signed: phones that are given an operator refuse them")
        else:
            logger.info("deliveries are signed by the operator %s", identity_of(settings.operator).hex())
        return monitor.follow(flow, settings.rounds)


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that are due; an error is logged in one line before it ends the app."""
    try:
        record = run_server(Settings.of(context.run_config), grid)
    except FedcaptorError as error:
        logger.error("%s%s", POSTPONED if isinstance(error, PostponedError) else FAILED, error)
        raise
    state = "the run has ended" if record.over else "the run goes on when it is started again"
    logger.info("%d rounds ended, %d clusters; %s", len(record.rounds), len(record.last.centroids), state)
