"""A sweep on disk: `DIR/seed-N` for each run, and `sweep.json`, `rounds.csv` and `report.html` of them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedcaptor.common.config import Config
from fedcaptor.common.errors import StateError
from fedcaptor.simulations import rounds
from fedcaptor.simulations.records import REPORT, ROUNDS, SUMMARY, SWEEP, Summary, Sweep, read, write
from fedcaptor.simulations.report.sweep_page import write_sweep_report
from fedcaptor.simulations.seeds import folder_of
from fedcaptor.simulations.stored_config import CONFIG, stored_config
from fedcaptor.simulations.sweep import sweep_of

_FINISHED = (SUMMARY, ROUNDS, REPORT)

Run = Callable[[int, Path], dict[str, Any]]


def is_sweep(directory: Path) -> bool:
    """Whether a folder holds a finished sweep."""
    return (directory / SWEEP).exists()


def run_sweep(directory: Path, configs: Mapping[int, Config], run: Run, command: str = "") -> dict[str, Any]:
    """Run every seed that has not finished under its configuration, then write the sweep's files.

    `run(seed, folder)` returns a run's summary. `command`: what to say of how the sweep came about. Called again it
    goes on where it stopped. Raises StateError when the folder holds a run of its own or of another configuration.
    """
    if (directory / CONFIG).exists():
        raise StateError(f"{directory} holds a single run, no sweep: choose another --out")
    summaries = {}
    for seed, config in configs.items():
        folder = folder_of(directory, seed)
        summaries[seed] = _finished(folder, config) or run(seed, folder)
    return conclude(directory, summaries, command).plain()


def rewrite(directory: Path) -> dict[str, Any]:
    """Write the files of a finished sweep again from its runs. Raises StateError that names what is missing."""
    before = read(directory / SWEEP, Sweep)
    summaries = {seed: _summary(folder_of(directory, seed)) for seed in before.seeds}
    return conclude(directory, summaries, before.provenance.command if before.provenance else "").plain()


def conclude(directory: Path, summaries: Mapping[int, dict[str, Any]], command: str) -> Sweep:
    """Write `sweep.json`, `rounds.csv` and `report.html`; returns the first."""
    sweep = sweep_of(summaries, command)
    rounds.write_rows(directory / ROUNDS, _rounds(directory, list(summaries)), ("seed", *rounds.COLUMNS))
    write(directory / SWEEP, sweep)
    write_sweep_report(directory)
    return sweep


def _rounds(directory: Path, seeds: Sequence[int]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        path = folder_of(directory, seed) / ROUNDS
        try:
            rows += [{"seed": seed, **row} for row in rounds.read_rows(path)]
        except OSError as error:
            raise StateError(f"{path} cannot be read ({error.strerror}); run the sweep again") from error
    return rows


def _finished(folder: Path, config: Config) -> dict[str, Any] | None:
    """The summary of a run that ended under this configuration."""
    if not (folder / CONFIG).exists() or not all((folder / name).exists() for name in _FINISHED):
        return None
    if stored_config(folder) != config:
        raise StateError(f"{folder} holds a run of another configuration: choose another --out or give --fresh")
    return _summary(folder)


def _summary(folder: Path) -> dict[str, Any]:
    return read(folder / SUMMARY, Summary).plain()
