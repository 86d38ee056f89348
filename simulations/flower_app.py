"""A simulation as a Flower app: `flwr run . --stream` in the checkout.

Server and phones are separate processes of one machine: both find the run's folder, the server writes the
configuration into it and prepares the population before the first message.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedcaptor.client.app import make_app
from fedcaptor.client.phone import Phone
from fedcaptor.client.torch_engine import load_base
from fedcaptor.common.assets import asset, checkout
from fedcaptor.common.config import Config, load_config
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.progress import lines
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.server.app import wait_for_nodes
from fedcaptor.server.record import RunRecord
from fedcaptor.simulations.phones import simulated_phone
from fedcaptor.simulations.ray_engine import MARK
from fedcaptor.simulations.round_accuracy import measure
from fedcaptor.simulations.run_lock import locked
from fedcaptor.simulations.runner import World, remove_run, run_rounds, simulate, weights_of
from fedcaptor.simulations.stored_config import stored_config

logger = logging.getLogger("flwr")  # Flower forwards this one to `flwr run --stream`

NODES_SECONDS = 120.0

RunConfig = Mapping[str, Any]


def out_of(run_config: RunConfig) -> Path:
    """The run's folder: absolute, the same for every process."""
    text = str(run_config.get("out", ""))
    if text:
        out = Path(text).expanduser()
        if not out.is_absolute():
            raise ConfigError(f"out is {text!r}, must be absolute: Flower runs the app in a folder of its own")
        return out
    root = checkout()
    if root is None:
        raise ConfigError("out is empty and there is no checkout to write to: give --run-config \"out='/a/folder'\"")
    return root / "runs" / "flwr"


def config_of(run_config: RunConfig, nodes: int) -> Config:
    """Scenario, overrides and one phone a node."""
    scenario = str(run_config.get("scenario", ""))
    path = None if not scenario else asset(scenario) if not Path(scenario).is_absolute() else Path(scenario)
    overrides = shlex.split(str(run_config.get("set", "")))
    config = load_config(path, [*overrides, f"population.phones={nodes}"])
    faults = config.faults
    if faults.dropout or faults.silence or faults.stall or faults.malformed:
        raise ConfigError("[faults] are simulated in one process alone: set them to 0, or use the engine local")
    return config


server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """The server's side, from the population to the report."""
    out = out_of(context.run_config)
    nodes = len(wait_for_nodes(grid, int(context.run_config.get("nodes", 0)), NODES_SECONDS))
    config = config_of(context.run_config, nodes)
    # `fedcaptor simulate --engine ray` holds the lock already.
    with nullcontext() if MARK in os.environ else locked(out, logger.info):
        if not context.run_config.get("out"):
            remove_run(out)  # the default folder holds the last run alone; a named one is resumed
        _simulate(config, out, nodes, grid, context.run_config)


def _simulate(config: Config, out: Path, nodes: int, grid: Grid, run_config: RunConfig) -> None:
    """Run over Flower's grid, and log progress and headline figures."""
    logger.info("%d phones, results go to %s", nodes, out)
    on_progress = lines(logger.info)

    def run(world: World) -> RunRecord:
        if world.phones != nodes:
            raise ConfigError(f"the data has {world.phones} owners for {nodes} nodes: start {world.phones} nodes")
        return run_rounds(world, grid, on_progress, on_round=lambda round: measure(world, round, on_progress))

    settings = " ".join(f"{key}={json.dumps(value)}" for key, value in run_config.items())
    summary = simulate(config, out, on_progress, run, shlex.join(["flwr", "run", ".", "--run-config", settings]))
    accuracy = summary["accuracy"]
    logger.info(
        "personalised accuracy %s, limited full model %s, MACs ratio %.3f, report %s",
        accuracy["personalised"]["mean"],
        accuracy["full_limited"]["mean"],
        summary["macs_ratio"],
        out / "report.html",
    )


@lru_cache(maxsize=1)
def _world(out: Path, run: int) -> tuple[Config, BaseModel]:
    """Once a process and run: what `build_world` left on disk, and the base model."""
    config = stored_config(out)
    _, height, width, channels = np.load(out / "population" / "images.npy", mmap_mode="r", allow_pickle=False).shape
    return config, load_base(weights_of(config), config.model.name, (channels, height, width))


def phone_of(context: Context) -> Phone:
    """The phone of a virtual node."""
    out = out_of(context.run_config)
    config, base = _world(out, context.run_id)
    return simulated_phone(out, config, base, int(context.node_config["partition-id"]))


client_app = make_app(phone_of)
