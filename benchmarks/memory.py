"""Peak memory of whole simulations by number of phones, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from typer import Option

from benchmarks.command import Benchmark
from benchmarks.progress import OnPhase
from benchmarks.record import Row, numbers
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


@dataclass(frozen=True, kw_only=True)
class Memory(Benchmark):
    """Peak resident memory of whole simulations by number of phones, which it must not grow with.

    A row takes about half a second a phone.

    Example: python -m benchmarks memory --phones 100,1000 --json benchmarks/results/memory.json
    """

    phones: Annotated[str, Option(help="Numbers of phones.")] = "100,1000"
    overrides: Annotated[list[str] | None, Option("--set", help="section.key=value, may be repeated.")] = None

    def __post_init__(self) -> None:
        for key in self.row_keys():
            load_config(None, self._overrides(key["phones"]))  # refused before any run

    def shared(self) -> dict[str, Any]:
        return {"overrides": [*SETTINGS, *(self.overrides or [])]}

    def row_keys(self) -> list[Row]:
        return [{"phones": count} for count in numbers(self.phones)]

    def measure(self, key: Mapping[str, Any], on_phase: OnPhase) -> dict[str, float]:
        """Run once, in a process of its own."""
        return peak_of_run(self._overrides(key["phones"]))

    def _overrides(self, phones: int) -> list[str]:
        return [*self.shared()["overrides"], f"population.phones={phones}"]


def peak_of_run(overrides: list[str]) -> dict[str, float]:
    """Simulate once; the peak is the operating system's figure for the whole process, libraries and report included."""
    chosen = [part for key in overrides for part in ("--set", key)]
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
        raise FedcaptorError(f"the run with {overrides[-1]} ended with code {child.returncode}: see its error above")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_rss_bytes": usage.ru_maxrss * unit,
        "seconds": time.monotonic() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }
