"""Measure programs (.onnx) on the device that this runs on: latency, memory, energy, temperature, accuracy.

    python -m fedcaptor.client.measure --json small.onnx full.onnx

One image at a time, as MLPerf Mobile's single stream, with its 90th percentile; warm-up and least duration as in
TensorFlow Lite's benchmark_model. Several programs run in a process each, so that a peak of memory is that of one.
It needs numpy and ONNX Runtime; accuracy on labelled images (`--data`) also Pillow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from fedcaptor.client.program import accuracy, content_of, example, load, precision
from fedcaptor.client.sysfs import SYSFS, Cores, EnergyMeter, temperature
from fedcaptor.common.errors import FedcaptorError, ModelError
from fedcaptor.common.memory import peak_rss
from fedcaptor.common.timing import Clock

WARM_UP_SECONDS, MOST_SECONDS = 0.5, 150.0
SLOWER = 0.9  # of the frequency before: less is throttling


@dataclass(frozen=True)
class Request:
    """Say how programs are measured.

    Attributes:
        threads: Threads that compute.
        runs: Images that are timed, at least.
        warm_up: Images before that, at least.
        seconds: Seconds in which images are timed, at least.
        data: Labelled images as `.npz` for the accuracy, which is not timed.
        sysfs: Where the kernel's files are.
    """

    threads: int = 1
    runs: int = 50
    warm_up: int = 1
    seconds: float = 1.0
    data: Path | None = None
    sysfs: Path = SYSFS


@dataclass(frozen=True)
class Measured:
    """Hold what was measured of one program; None is what the device does not tell, and `notes` says why.

    Attributes:
        model: The program's file.
        runtime: What ran it.
        runtime_version: Its version.
        precision: Numbers that it computes in: float32, float16, int8.
        threads: Threads that computed.
        cores: Numbers of the processor cores that they ran on.
        runs: Images that were timed.
        latency_ms_median: Median milliseconds of an image by the clock on the wall.
        latency_ms_p90: Their 90th percentile.
        cpu_ms_median: Median milliseconds of processor time, of all threads: other processes do not count.
        load_ms: Milliseconds to load the program.
        loaded_rss_bytes: Peak resident memory before the program was loaded: Python, numpy, ONNX Runtime.
        peak_rss_bytes: Peak resident memory of the process after all images.
        energy_joules: Of one image.
        energy_source: What measured it, and of what.
        temperature_c: Of the hottest zone at the end.
        temperature_before_c: At the start.
        megahertz: Mean frequency of the cores at the end.
        megahertz_before: At the start, after the warm-up.
        accuracy: Share of right answers on `data`.
        file_bytes: Size of the program.
        notes: What could not be read, and what speaks against the figures.
    """

    model: str
    runtime: str
    runtime_version: str
    precision: str
    threads: int
    cores: tuple[int, ...]
    runs: int
    latency_ms_median: float
    latency_ms_p90: float
    cpu_ms_median: float
    load_ms: float
    loaded_rss_bytes: int
    peak_rss_bytes: int
    energy_joules: float | None
    energy_source: str | None
    temperature_c: float | None
    temperature_before_c: float | None
    megahertz: float | None
    megahertz_before: float | None
    accuracy: float | None
    file_bytes: int
    notes: tuple[str, ...]


def measured(path: Path, request: Request, clock: Clock = time.perf_counter) -> Measured:
    """Measure a program in this process, of which it should be the only one.

    Raises ModelError for a file that is no program of images, DataError for unfit `data`.
    """
    notes: list[str] = []
    cores = on_fast_cores(request.sysfs, request.threads, notes)
    before, start = peak_rss(), clock()
    content, name = content_of(path), str(path)
    session = load(content, request.threads, name)
    load_seconds = clock() - start
    run = partial(session.run, [session.get_outputs()[0].name], example(session, name))
    repeated(run, request.warm_up, WARM_UP_SECONDS, clock)
    times, device = _on_device(run, request, cores, notes, clock)
    peak = peak_rss()
    return Measured(
        model=path.name,
        runtime="onnxruntime",
        runtime_version=onnxruntime.__version__,
        precision=precision(session, content),
        threads=request.threads,
        cores=cores,
        runs=len(times),
        latency_ms_median=1e3 * float(np.median(times[:, 0])),
        latency_ms_p90=1e3 * percentile(times[:, 0], 0.9),
        cpu_ms_median=1e3 * float(np.median(times[:, 1])),
        load_ms=1e3 * load_seconds,
        loaded_rss_bytes=before,
        peak_rss_bytes=peak,
        **device,
        accuracy=None if request.data is None else accuracy(session, request.data, name),
        file_bytes=len(content),
        notes=tuple(notes),
    )


def _on_device(
    run: Callable[[], object], request: Request, cores: Sequence[int], notes: list[str], clock: Clock
) -> tuple[np.ndarray, dict[str, Any]]:
    """Time a program: seconds as of `repeated`, and what the device tells meanwhile, by `Measured`'s names."""
    heat, speed = temperature(request.sysfs), Cores(request.sysfs).megahertz(cores)
    meter = EnergyMeter(request.sysfs, clock)
    times = repeated(run, request.runs, request.seconds, clock, meter.sample)
    joules = meter.stop()
    heat_after, speed_after = temperature(request.sysfs), Cores(request.sysfs).megahertz(cores)
    if meter.problem:
        notes.append(meter.problem)
    if heat_after is None:
        notes.append("temperature: no thermal zone can be read")
    if speed is None or speed_after is None:
        notes.append("frequency: cpufreq cannot be read, throttling would not be seen")
    elif speed_after < SLOWER * speed:
        notes.append(f"throttled: the cores went from {speed:.0f} to {speed_after:.0f} MHz while it ran")
    return times, {
        "energy_joules": None if joules is None else joules / len(times),
        "energy_source": meter.source,
        "temperature_c": heat_after,
        "temperature_before_c": heat,
        "megahertz": speed_after,
        "megahertz_before": speed,
    }


def measured_alone(path: Path, request: Request) -> dict[str, Any]:
    """Measure a program in a process of its own, as a row of JSON. Raises ModelError when that process fails."""
    words = ["--threads", request.threads, "--runs", request.runs, "--warm-up", request.warm_up]
    words += ["--seconds", request.seconds, "--sysfs", request.sysfs]
    words += [] if request.data is None else ["--data", request.data]
    command = [sys.executable, "-m", "fedcaptor.client.measure", "--json", *map(str, words), "--", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1]
        raise ModelError(reason.removeprefix("error: "))
    (row,) = json.loads(done.stdout)
    return dict(row)


def repeated(
    run: Callable[[], object],
    least: int,
    seconds: float,
    clock: Clock = time.perf_counter,
    between: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Run at least so often and so long, and at most `MOST_SECONDS`: seconds on the wall and of the processor [n, 2].

    `between` is called between two runs; its time is in none of them.
    """
    times: list[tuple[float, float]] = []
    began = clock()
    while (spent := clock() - began) < MOST_SECONDS and (len(times) < least or spent < seconds):
        wall, cpu = clock(), time.process_time()
        run()
        times.append((clock() - wall, time.process_time() - cpu))
        between()
    return np.array(times).reshape(-1, 2)


def percentile(values: np.ndarray, share: float) -> float:
    """Return the smallest value that at least this share of all values does not exceed, as MLPerf's load generator."""
    return float(np.sort(values)[max(int(np.ceil(share * len(values))) - 1, 0)])


def on_fast_cores(sysfs: Path, threads: int, notes: list[str]) -> tuple[int, ...]:
    """Let this process, and threads that it starts, run on the fastest cores alone; return those that it may use."""
    if not hasattr(os, "sched_getaffinity"):
        notes.append("cores: this system does not tell on which cores a process runs")
        return ()
    allowed = os.sched_getaffinity(0)
    fastest = Cores(sysfs).fastest(allowed, threads)
    if fastest is None:
        notes.append("cores: cpufreq cannot be read, which cores are fast is not known")
    elif set(fastest) != allowed:
        try:
            os.sched_setaffinity(0, fastest)
        except OSError as error:
            notes.append(f"cores: the system does not let this process choose ({error.strerror})")
    return tuple(sorted(os.sched_getaffinity(0)))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    own = Request()
    parser = argparse.ArgumentParser(prog="python -m fedcaptor.client.measure", description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--json", action="store_true", help="rows as JSON, in place of a table")
    parser.add_argument("--threads", type=_positive, default=own.threads, help="threads that compute")
    parser.add_argument("--runs", type=_positive, default=own.runs, help="images that are timed, at least")
    parser.add_argument("--warm-up", type=_positive, default=own.warm_up, help="images before that, at least")
    parser.add_argument("--seconds", type=float, default=own.seconds, help="seconds of timing at least; 60 for energy")
    parser.add_argument("--data", type=Path, help="labelled images, .npz, for the accuracy")
    parser.add_argument("--sysfs", type=Path, default=own.sysfs, help="where the kernel's files are")
    return parser.parse_args(words)


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}, must be at least 1")
    return number


def _line(row: dict[str, Any]) -> str:
    energy = "–" if row["energy_joules"] is None else f"{1e3 * row['energy_joules']:.2f}"
    heat = "–" if row["temperature_c"] is None else f"{row['temperature_c']:.0f}"
    figures = (f"{row[key]:10.2f}" for key in ("latency_ms_median", "latency_ms_p90", "cpu_ms_median"))
    memory = f"{row['peak_rss_bytes'] / 2**20:10.0f}"
    return " ".join([f"{row['model']:30}", f"{row['precision']:9}", *figures, memory, f"{energy:>10}", f"{heat:>5}"])


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print. Programs that cannot be measured are named on the error stream; the exit code is then 2."""
    asked = _arguments(words)
    request = Request(asked.threads, asked.runs, asked.warm_up, asked.seconds, asked.data, asked.sysfs)
    rows: list[dict[str, Any]] = []
    failed = False
    for path in asked.models:
        try:
            alone = len(asked.models) == 1
            rows.append(asdict(measured(path, request)) if alone else measured_alone(path, request))
        except FedcaptorError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    if asked.json:
        print(json.dumps(rows))
    elif rows:
        names = ("median ms", "p90 ms", "CPU ms", "peak MiB", "mJ", "°C")
        print(f"{'program':30} {'precision':9} {' '.join(f'{n:>10}' for n in names[:-1])} {names[-1]:>5}")
        for row in rows:
            print(_line(row))
        for note in dict.fromkeys(note for row in rows for note in row["notes"]):
            print(note)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
