"""Peak memory of whole simulations by number of phones, each in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from common.errors import ConfigError, FedcaptorError
from common.files import replacing

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


def memory(
    file: Annotated[Path, typer.Option("--json", help="File of the rows, written after each.")],
    phones: Annotated[str, typer.Option(help="Numbers of phones, smallest first.")] = "100,1000",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value, may be repeated.")] = None,
) -> None:
    """Peak resident memory of a run with 100 phones and with 1,000: it must not grow with the phones.

    Ratios are to the first number. A row takes about half a second a phone.

    Example: python -m benchmarks memory --phones 100,1000 --json memory.json
    """
    settings = [*SETTINGS, *(overrides or [])]
    rows: list[dict[str, Any]] = []
    for count in _numbers(phones):
        row = _measured(count, settings)
        rows.append(row | {"ratio": row["peak_rss_bytes"] / (rows[0] if rows else row)["peak_rss_bytes"]})
        with replacing(file) as temporary:
            temporary.write_text(
                json.dumps({"settings": settings, "machine": platform.machine(), "rows": rows}, indent=1)
            )
        print(f"{count} phones: peak {row['peak_rss_bytes'] / 2**20:.0f} MiB, {rows[-1]['ratio']:.2f} × the first")


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ConfigError(f"--phones is {text!r}, must be numbers from 1: 100,1000")
    return found


def _measured(phones: int, settings: list[str]) -> dict[str, Any]:
    """One run; its peak is the operating system's figure for the whole process, libraries and report included."""
    chosen = [part for key in (*settings, f"population.phones={phones}") for part in ("--set", key)]
    with TemporaryDirectory(prefix="fedcaptor-memory-") as folder:
        start = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "simulate", *chosen, "--out", str(Path(folder) / "run")],
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
        "phones": phones,
        "peak_rss_bytes": usage.ru_maxrss * unit,
        "seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
    }
