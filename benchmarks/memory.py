"""Peak memory of whole simulations by number of phones, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchmarks.options import File, Fresh
from benchmarks.progress import bars
from benchmarks.record import command_line, numbers, open_record, sweep
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import FedcaptorError

SETTINGS = (
    "privacy.min_cohort=20",
    "visualise.enabled=false",
    "personal.ladder=[0.3]",
    "planner.images=200",
    "population.use_images=20",
    "population.check_images=10",
    "population.test_images=20",
)
"""Little work a phone: what matters is their number."""


def command(
    file: File,
    phones: Annotated[str, typer.Option(help="Numbers of phones.")] = "100,1000",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, may be repeated.")] = None,
    fresh: Fresh = False,
) -> None:
    """Peak resident memory of whole simulations by number of phones, which it must not grow with.

    A row takes about half a second a phone.

    Example: python -m benchmarks memory --phones 100,1000 --json benchmarks/results/memory.json
    """
    chosen = [*SETTINGS, *(overrides or [])]
    written = command_line("memory", file, phones=phones) + "".join(f" --set {key}" for key in overrides or [])
    record = open_record(file, "memory", {"overrides": chosen}, written, fresh)
    keys = [{"phones": count} for count in numbers(phones)]
    for key in keys:
        load_config(None, _overrides(key["phones"], chosen))  # refused before any run
    with bars("memory") as (on_row, _):
        sweep(record, file, keys, lambda key: measure(key["phones"], chosen), on_row)


def _overrides(phones: int, settings: list[str]) -> list[str]:
    return [*settings, f"population.phones={phones}"]


def measure(phones: int, settings: list[str]) -> dict[str, float]:
    """One run; its peak is the operating system's figure for the whole process, libraries and report included."""
    chosen = [part for key in _overrides(phones, settings) for part in ("--set", key)]
    with TemporaryDirectory(prefix="fedcaptor-memory-") as folder:
        start = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-m", "fedcaptor.cli.main", "simulate", *chosen, "--out", str(Path(folder) / "run")],
            stdout=subprocess.DEVNULL,
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise FedcaptorError(f"the run with {phones} phones ended with code {child.returncode}: see its error above")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_rss_bytes": usage.ru_maxrss * unit,
        "seconds": time.monotonic() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }
