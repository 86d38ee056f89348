"""One simulated run from configuration to summary, resumable: `DIR` holds everything that it needs to go on."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from flwr.app import Context
from flwr.serverapp import Grid
from joblib import cpu_count
from threadpoolctl import threadpool_limits

from fedcaptor.client.app import make_app
from fedcaptor.client.phone import Phone
from fedcaptor.common.assets import asset
from fedcaptor.common.class_names import fitting_names
from fedcaptor.common.config import Config
from fedcaptor.common.data.source import Dataset, load
from fedcaptor.common.data.splits import split
from fedcaptor.common.errors import ConfigError, StateError
from fedcaptor.common.files import make_folder, replacing
from fedcaptor.common.memory import peak_rss
from fedcaptor.common.progress import OnProgress
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.server.monitor import Monitor, described
from fedcaptor.server.planning import Reference
from fedcaptor.server.record import RunRecord
from fedcaptor.server.start import courier_of, open_run, run_digest
from fedcaptor.simulations import records, rounds
from fedcaptor.simulations.local_grid import App, LocalGrid, VirtualClock
from fedcaptor.simulations.oracle import Oracle
from fedcaptor.simulations.owners_world import SOURCE as OWNERS
from fedcaptor.simulations.phones import GRAPH, simulated_phone
from fedcaptor.simulations.population import prepare
from fedcaptor.simulations.report import write_report
from fedcaptor.simulations.round_accuracy import measure, measured
from fedcaptor.simulations.run_lock import LOCK
from fedcaptor.simulations.stored_config import CONFIG, stored_config
from fedcaptor.simulations.summary import PHONE_COLUMNS, details_of, phone_rows, summary_of

SHIPPED = asset("simulations/models/small_cnn_fashion.safetensors")
OF_OWNERS = asset("simulations/models/small_cnn_owners.safetensors")
ARENA_MAX = -8  # glibc's M_ARENA_MAX
KEPT_KERNELS = 32  # compiled kernels that oneDNN and its wrapper in torch keep, 1,024 by default


@dataclass(frozen=True, eq=False)
class World:
    """All that a simulation is made of before its first message."""

    config: Config
    directory: Path
    data: Dataset
    base: BaseModel
    reference: Reference
    phones: int
    weights_bytes: int


def weights_of(config: Config) -> Path:
    """The base model's file: the configured one, or the shipped one for embedded data and the world of owners."""
    if config.model.weights:
        return Path(config.model.weights)
    shipped = {"embedded": SHIPPED, OWNERS: OF_OWNERS}.get(config.data.source)
    if shipped and config.model.name == "small-cnn":
        return shipped
    raise ConfigError(
        f"model.weights is empty, weights are shipped for small-cnn on embedded data or {OWNERS} alone, not for "
        f"{config.model.name} on {config.data.source}: train them with `fedcaptor train` and give their file"
    )


def keep_memory_flat() -> None:
    """Two habits of libraries would let memory grow with the phones.

    oneDNN keeps a compiled kernel for each shape, and every phone's submodel has shapes of its own; the limit is read
    at the first convolution of the process. Threads have arenas of their own in glibc: with one for all, freed
    activations of one phone serve the next (about a sixth of the peak). Other C libraries have no such call.
    """
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(variable, str(KEPT_KERNELS))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(ARENA_MAX, 1)


def build_world(config: Config, directory: Path) -> World:
    """Load data and model, prepare the population; keeps what an earlier call left. Raises StateError when the folder
    belongs to another configuration.
    """
    torch.set_num_threads(1)
    threadpool_limits(1)
    keep_memory_flat()
    if config.run.rounds != config.planned_rounds:
        raise ConfigError(
            f"run.rounds is {config.run.rounds} and privacy.rounds_per_period {config.privacy.rounds_per_period}: the "
            "rounds of a simulation follow at once, all of them within 90 days; set run.rounds to 1 or more, and "
            "privacy.rounds_per_period to 0 or at least as many"
        )
    if config.personal.precision == "int8" and config.run.engine == "torch":
        raise ConfigError('personal.precision is int8, which phones with torch do not have: set run.engine = "onnx"')
    make_folder(directory)
    stored = directory / CONFIG
    if stored.exists() and stored_config(directory) != config:
        raise StateError(f"{directory} holds a run of another configuration: choose another --out or remove it")
    data = load(config.data.source)
    weights = weights_of(config)
    _, height, width, channels = data.x.shape
    base = BaseModel.load(weights, config.model.name, (channels, height, width))
    if names := fitting_names(base.groups.classes, base.class_names, data.names, data.name):
        data = replace(data, names=names[: len(data.names)])  # those of the weights, where the data has numbers
    graph = directory / GRAPH
    if config.run.engine == "onnx" and not graph.exists():
        from fedcaptor.common.torch_engine.network_graph import network_graph

        network_graph(base).save(graph)
    parts = split(data)
    phones = prepare(
        directory,
        data,
        parts["phones"],
        config.population,
        config.run.rounds,
        config.run.seed,
        config.usage.corrections,
        config.looks,
    )
    with replacing(stored) as temporary:
        temporary.write_text(config.model_dump_json(indent=1))
    other = config.data.reference
    reference = Reference.of(load(other)) if other else Reference.of(data, parts)
    return World(config, directory, data, base, reference, phones, weights.stat().st_size)


def local_grid(
    world: World, clock: VirtualClock, around: Callable[[App], App] = lambda app: app, workers: int | None = None
) -> LocalGrid:
    """All phones in this process; a phone exists while it answers. `around`: what the phones' app is wrapped in.

    `workers`: phones that answer at the same time, None: one for each core; the figures do not depend on it.
    """

    def phone_of(context: Context) -> Phone:
        number = int(context.node_config["partition-id"])
        return simulated_phone(world.directory, world.config, world.base, number)

    return LocalGrid(
        around(make_app(phone_of)),
        world.phones,
        faults=world.config.faults,
        seed=world.config.run.seed,
        clock=clock.time,
        sleep=clock.sleep,
        # Threads do: of eight, each is kept waiting by the others a sixth of its time, of four a twelfth at most.
        workers=workers or cpu_count(),
    )


def require_run(directory: Path) -> None:
    """Raise StateError for a folder that holds something else than a run."""
    found = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if found - {LOCK} and CONFIG not in found:
        raise StateError(f"{directory} holds no run: choose another folder, or empty it yourself")


def remove_run(directory: Path) -> None:
    """Delete an earlier run, all but its lock; refuses a folder that holds something else."""
    require_run(directory)
    for path in directory.iterdir() if directory.exists() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def run_rounds(
    world: World,
    grid: Grid,
    on_progress: OnProgress,
    clock: VirtualClock | None = None,
    on_round: Callable[[int], None] = lambda round: None,
) -> RunRecord:
    """The server's side over any grid: all rounds, a snapshot after each phase.

    `on_round` is called with the number of a round that has ended, while the phones still have what they got in it.
    """
    config = world.config
    digest = run_digest(config, world.base, world.phones)
    monitor = Monitor(
        world.directory, digest, config, world.weights_bytes, simulated=True, model=described(config, world.base)
    )
    courier = replace(courier_of(config, grid, digest, on_progress), grace=math.inf, activity=monitor.activity)
    if clock is not None:  # in one process a replay is the same in every byte, so tries are counted
        counted = courier.masking and replace(courier.masking, attempt=lambda number: f"{number:032x}")
        courier = replace(courier, masking=counted, sleep=clock.sleep, clock=clock.time)
    ended = 0

    def on_phase(so_far: RunRecord) -> None:
        nonlocal ended
        monitor.running(so_far)
        if len(so_far.rounds) > ended:
            ended = len(so_far.rounds)
            if max(round for round, _ in flow.journal.seconds()) == so_far.last.round:  # else a replay
                on_round(so_far.last.round)

    with (
        monitor.watching(),
        open_run(
            config,
            world.base,
            world.reference,
            grid,
            digest=digest,
            state=f"sqlite:///{world.directory / 'state.db'}",
            pictures=world.directory / "pictures",
            courier=courier,
            on_progress=on_progress,
            on_phase=on_phase,
        ) as flow,
    ):
        return monitor.follow(flow)


def simulate(
    config: Config,
    directory: Path,
    on_progress: OnProgress = lambda phase, done, total: None,
    run: Callable[[World], RunRecord] | None = None,
    command: str = "",
    workers: int | None = None,
) -> dict[str, Any]:
    """The whole run; writes summary, details, rounds, phones, atlas and report into `directory`, returns the summary.

    `run`: another engine than the in-process grid. `command`: what to say of how the run came about. `workers`: of
    `local_grid`. Called again with the same directory it resumes.
    """
    start = time.monotonic()
    world = build_world(config, directory)
    if run is None:
        clock = VirtualClock()
        grid = local_grid(world, clock, workers=workers)
        record = run_rounds(world, grid, on_progress, clock, lambda round: measure(world, round, on_progress))
    else:
        record = run(world)
    return conclude(world, record, start, on_progress, command)


def conclude(
    world: World, record: RunRecord, start: float, on_progress: OnProgress, command: str = ""
) -> dict[str, Any]:
    """Oracle figures, summary and report of a finished run."""
    last = record.last
    oracle = Oracle(world.directory, world.config, world.base, last.submodels.submodels(world.base))
    figures, expected = [], []
    for number in range(world.phones):
        figures.append(oracle.phone(number, last.round))
        expected.append(oracle.expected(number, last.round))
        on_progress("oracle", number + 1, world.phones)
    earlier = [measured(world.directory, round) for round in range(1, last.round)]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    provenance = records.Provenance(command=command, finished=now, version=version("fedcaptor"))
    summary = summary_of(world, record, figures, expected, earlier, time.monotonic() - start, peak_rss(), provenance)
    details = details_of(world, record, figures)
    records.write(world.directory / records.SUMMARY, summary)
    records.write(world.directory / records.DETAILS, details)
    rounds.write_rows(world.directory / records.ROUNDS, [row.plain() for row in details.rounds])
    rounds.write_rows(world.directory / records.PHONES, phone_rows(world, figures), PHONE_COLUMNS)
    if record.atlas:
        atlas = {name: np.ascontiguousarray(tensor) for name, tensor in record.atlas.items()}
        with replacing(world.directory / records.ATLAS) as temporary:
            temporary.write_bytes(safetensors.numpy.save(atlas))
    if record.statistics:
        decoded = {name: _plain(figure) for name, figure in record.statistics.items()}
        records.write_json(world.directory / records.STATISTICS, decoded)
    write_report(world.directory)
    return summary.plain()


def _plain(figure: Any) -> Any:
    """A statistic's decoded figure as JSON has it: arrays become lists."""
    if isinstance(figure, np.ndarray):
        return figure.tolist()
    return [_plain(part) for part in figure] if isinstance(figure, list | tuple) else figure
