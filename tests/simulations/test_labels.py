"""Neither phones nor server ever depend on true labels: without any, or with wrong ones, all they do is the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from fedcaptor.common.config import Config, load_config
from fedcaptor.server.exporter import RunsCollector
from fedcaptor.simulations.local_grid import VirtualClock
from fedcaptor.simulations.runner import World, build_world, conclude, local_grid, run_rounds
from tests import tiny
from tests.integration.test_survival import rows

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
ROUNDS = 2
SMALL = (
    f"run.rounds={ROUNDS}",
    "population.drift_round=2",
    "population.out_of_set=0.2",
    "privacy.min_cohort=4",
    "testing.small_cohorts=true",
    "privacy.epsilon=1000",
    "clusters.k=2",
)


@pytest.fixture(scope="module")
def config(bars: tuple[Path, Path]) -> Config:
    return load_config(None, tiny.overrides(*bars, *SMALL))


def lived_through(config: Config, directory: Path, meddle: Callable[[Path], None]) -> World:
    """All rounds of phones and server, the oracle in `directory` changed before the first message."""
    world = build_world(config, directory)
    meddle(directory / "oracle")
    clock = VirtualClock()
    record = run_rounds(world, local_grid(world, clock), lambda *_: None, clock)
    assert len(record.last.submodels.plans) == 2  # two preference clusters: every kind of sum has its blocks
    return world


@pytest.fixture(scope="module")
def blind(config: Config, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A run in a folder that holds no label at all: every kind of sum and delivery, with drift, still goes through."""
    return lived_through(config, tmp_path_factory.mktemp("blind"), shutil.rmtree)


def garbled(oracle: Path) -> None:
    rng = np.random.default_rng(9)
    for name in ("labels", "test", "shares", "images"):
        stored = np.load(oracle / f"{name}.npy")
        np.save(oracle / f"{name}.npy", rng.permutation(stored.ravel()).reshape(stored.shape))


def journal_of(directory: Path) -> dict[str, list[Any]]:
    """All that the server keeps, seconds and the hour aside."""
    return {
        "run": rows(directory / "state.db", "SELECT id, digest FROM run"),
        "phases": rows(directory / "state.db", "SELECT round, phase, outcome, tensors, checksum FROM phases"),
        "refused": rows(directory / "state.db", "SELECT * FROM refused"),
    }


def snapshot_of(directory: Path) -> dict[str, Any]:
    snapshot: dict[str, Any] = json.loads((directory / "snapshot.json").read_text())
    for name in ("started", "heartbeat", "ended", "process"):
        assert snapshot.pop(name)
    assert snapshot.pop("round_seconds")["count"] == ROUNDS
    assert all(phase.pop("seconds") >= 0 for phase in snapshot["phases"])
    return snapshot


def metrics_of(directory: Path) -> list[str]:
    """Every exported series, times aside."""
    registry = CollectorRegistry()
    registry.register(RunsCollector(directory))
    lines = generate_latest(registry).decode().replace(f'run="{directory.name}"', 'run="it"').splitlines()
    return [line for line in lines if "_seconds" not in line and "_memory" not in line]


def phones_of(directory: Path) -> dict[str, bytes]:
    """Every file that phones keep, but for their databases, which hold the hour."""
    files = sorted(p for p in (directory / "phones").rglob("*") if p.is_file() and p.suffix != ".db")
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}


def test_a_run_without_any_label_does_all_that_there_is(config: Config, blind: World) -> None:
    assert not (blind.directory / "oracle").exists()
    phases = {f"{round}/{phase}" for round, phase, *_ in journal_of(blind.directory)["phases"]}
    assert phases >= {"1/usage-0", "1/usage-1", "1/scores-0", "1/deliver", "1/outcome-0", "2/usage-1", "2/deliver"}
    for _, _, outcome, *_ in journal_of(blind.directory)["phases"]:
        tally = json.loads(outcome).get("tally")
        assert tally is None or tally["replies"] == tally["asked"] == config.population.phones
    assert snapshot_of(blind.directory)["status"] == "ended"
    kept = [json.loads(p.read_text()) for p in (blind.directory / "phones").rglob("outcome.json")]
    assert len(kept) == config.population.phones
    assert sum(note["kind"] != "full" for note in kept) > 10
    assert not any("label" in path.name for path in (blind.directory / "population").iterdir())


def test_phones_and_server_are_the_same_whatever_the_labels_say(config: Config, blind: World, tmp_path: Path) -> None:
    lived_through(config, tmp_path, garbled)
    assert journal_of(tmp_path) == journal_of(blind.directory)
    assert snapshot_of(tmp_path) == snapshot_of(blind.directory)
    assert metrics_of(tmp_path) == metrics_of(blind.directory)
    assert len(metrics_of(tmp_path)) > 40
    assert phones_of(tmp_path) == phones_of(blind.directory)


def test_telling_the_truth_afterwards_changes_no_state(config: Config, blind: World, tmp_path: Path) -> None:
    """The summary is made with the labels; what monitoring shows was written without them and stays."""
    shutil.copytree(blind.directory, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "population")
    world = build_world(config, tmp_path / "run")  # the same population, oracle included
    before = journal_of(world.directory), metrics_of(world.directory), phones_of(world.directory)
    clock = VirtualClock()
    record = run_rounds(world, local_grid(world, clock), lambda *_: None, clock)
    summary = conclude(world, record, 0.0, lambda *_: None)
    assert (journal_of(world.directory), metrics_of(world.directory), phones_of(world.directory)) == before
    assert summary["accuracy"]["full_limited"]["mean"] > 0.7
