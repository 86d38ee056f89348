"""The JSON file of one benchmark: what was asked, on what machine, and a row for all that is finished."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedcaptor.common.config import Config
from fedcaptor.common.errors import ConfigError, StateError
from fedcaptor.common.files import replacing
from fedcaptor.simulations.seeds import parse_seeds

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Record:
    """`settings`: all that the rows have in common; `commands`: those that made the rows; `machine`: see `machine`.

    `note`: what a reader must know of the rows, such as that they are of an earlier protocol; the page shows it.
    """

    benchmark: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    commands: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    note: str = ""

    def holds(self, key: Mapping[str, Any]) -> bool:
        """Tell whether a row with all these values is there; None is what a row has that lacks a column."""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self.rows)

    def distinct(self, name: str) -> list[Any]:
        """Return the different values of a column, in the order in which they came."""
        return list(dict.fromkeys(row[name] for row in self.rows))

    def save(self, path: Path) -> None:
        """Write all of it; the file is whole at any moment."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(vars(self), indent=1, allow_nan=False) + "\n")


def read_record(path: Path) -> Record:
    """Read a stored record. Raises StateError when the file is none."""
    try:
        return Record(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise StateError(f"{path} holds no benchmark's rows ({error}): choose another --json or remove it") from error


def open_record(path: Path, benchmark: str, settings: dict[str, Any], command: str, fresh: bool = False) -> Record:
    """Return the record in `path`, to go on with, or a new one. Raises StateError when its rows are not comparable."""
    here = machine()
    if fresh or not path.exists():
        return Record(benchmark, settings, here, [command])
    record = read_record(path)
    for name, stored, asked in (
        ("benchmark", record.benchmark, benchmark),
        ("settings", record.settings, settings),
        ("machine", record.machine, here),
    ):
        if stored != asked:
            raise StateError(
                f"{path} has rows that differ in {name} ({_difference(stored, asked)}): choose another --json, or "
                "start it anew with --fresh"
            )
    if command not in record.commands:
        record.commands.append(command)
    return record


def sweep(
    record: Record,
    path: Path,
    keys: Iterable[Mapping[str, Any]],
    measure: Callable[[Mapping[str, Any]], Mapping[str, Any] | None],
    on_row: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Measure each key that the record lacks, and store its row {**key, **figures} at once; no row where nothing was
    measured. `on_row(done, total)`.
    """
    keys = list(keys)
    for done, key in enumerate(keys):
        on_row(done, len(keys))
        if not record.holds(key) and (figures := measure(key)) is not None:
            record.rows.append({**key, **rounded(figures)})
            record.save(path)
    on_row(len(keys), len(keys))


def rounded(figures: Mapping[str, Any]) -> Row:
    """Round to six significant digits, more than any of these figures has."""
    return {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in figures.items()}


def machine() -> dict[str, Any]:
    """Return what figures depend on and may be told: no host name."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu(Path("/proc/cpuinfo")),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def settings_of(config: Config) -> dict[str, Any]:
    """Return what a record says of the configuration of its runs; the digest stands for every other key."""
    return {
        "delta": config.privacy.delta,
        "model": config.model.name,
        "data": config.data.source,
        "macs": config.planner.macs,
        "configuration": config.digest[:16],
    }


def numbers(text: str) -> list[int]:
    """Read `0..2` or `100,30,12` as numbers. Raises ConfigError."""
    try:
        return list(parse_seeds(text))
    except ConfigError:
        raise ConfigError(
            f"{text!r} must be different whole numbers such as 100,30,12, or a range such as 0..2"
        ) from None


def floats(text: str) -> list[float]:
    """Read `0.5,2,inf` as numbers; none where they are not different numbers."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        return []
    return found if len(set(found)) == len(found) else []


def ratios(text: str) -> list[float]:
    """Read `0.5,0.3` as shares of the full model's MACs. Raises ConfigError."""
    found = floats(text)
    if not found or not all(0 < ratio <= 1 for ratio in found):
        raise ConfigError(f"macs is {text!r}, must be different ratios in (0, 1] such as 0.5,0.3")
    return found


def _difference(stored: Any, asked: Any) -> str:
    if not isinstance(stored, dict) or not isinstance(asked, dict):
        return f"{stored}, asked for {asked}"
    names = [name for name in {**stored, **asked} if stored.get(name) != asked.get(name)]
    return ", ".join(f"{name}: {stored.get(name)}, now {asked.get(name)}" for name in names)


def _cpu(cpuinfo: Path) -> str:
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
