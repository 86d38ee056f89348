"""Accuracy after each round, which is measured when the round ends: later on, phones have other models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedcaptor.common.progress import OnProgress
from fedcaptor.simulations.oracle import Oracle
from fedcaptor.simulations.records import RoundAccuracy, read, write
from fedcaptor.simulations.summary import round_accuracy

if TYPE_CHECKING:
    from fedcaptor.simulations.runner import World


def measure(world: World, round: int, on_progress: OnProgress) -> None:
    """Store the accuracy after `round`, which has just ended; the last round's is measured with all other figures."""
    if round == world.config.run.rounds:
        return
    oracle, figures = Oracle(world.directory, world.config, world.base, []), []
    for number in range(world.phones):
        figures.append(oracle.phone(number, round))
        on_progress("oracle", number + 1, world.phones)
    write(_file(world.directory, round), round_accuracy(round, figures))


def measured(directory: Path, round: int) -> RoundAccuracy:
    """The accuracy after `round` as it was stored; without figures where nobody measured it."""
    path = _file(directory, round)
    return read(path, RoundAccuracy) if path.exists() else RoundAccuracy(round=round)


def _file(directory: Path, round: int) -> Path:
    return directory / "oracle" / f"accuracy-{round}.json"
