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
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from fedcaptor.client.sysfs import SYSFS, Cores, EnergyMeter, temperature
from fedcaptor.common.errors import DataError, FedcaptorError, ModelError
from fedcaptor.common.memory import peak_rss

WARM_UP_SECONDS, MOST_SECONDS = 0.5, 150.0
SLOWER = 0.9  # of the frequency before: less is throttling
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


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


def measured(path: Path, request: Request, clock: Callable[[], float] = time.perf_counter) -> Measured:
    """Measure a program in this process, of which it should be the only one.

    Raises ModelError for a file that is no program of images, DataError for unfit `data`.
    """
    notes: list[str] = []
    cores, told = on_fast_cores(request.sysfs, request.threads, notes), Cores(request.sysfs)
    before_loading, start = peak_rss(), clock()
    content = _content(path)
    session = load(content, request.threads, str(path))
    load_seconds = clock() - start
    given = example(session, str(path))
    outputs = [session.get_outputs()[0].name]

    def run() -> None:
        session.run(outputs, given)

    repeated(run, request.warm_up, WARM_UP_SECONDS, clock)
    heat, speed = temperature(request.sysfs), told.megahertz(cores)
    meter = EnergyMeter(request.sysfs, clock)
    times = repeated(run, request.runs, request.seconds, clock, meter.sample)
    joules = meter.stop()
    heat_after, speed_after = temperature(request.sysfs), told.megahertz(cores)
    if meter.problem:
        notes.append(meter.problem)
    if heat_after is None:
        notes.append("temperature: no thermal zone can be read")
    if speed is None or speed_after is None:
        notes.append("frequency: cpufreq cannot be read, throttling would not be seen")
    elif speed_after < SLOWER * speed:
        notes.append(f"throttled: the cores went from {speed:.0f} to {speed_after:.0f} MHz while it ran")
    peak = peak_rss()
    return Measured(
        model=path.name,
        runtime="onnxruntime",
        runtime_version=onnxruntime.__version__,
        precision=_precision(session, content),
        threads=request.threads,
        cores=cores,
        runs=len(times),
        latency_ms_median=1e3 * float(np.median(times[:, 0])),
        latency_ms_p90=1e3 * percentile(times[:, 0], 0.9),
        cpu_ms_median=1e3 * float(np.median(times[:, 1])),
        load_ms=1e3 * load_seconds,
        loaded_rss_bytes=before_loading,
        peak_rss_bytes=peak,
        energy_joules=None if joules is None else joules / len(times),
        energy_source=meter.source,
        temperature_c=heat_after,
        temperature_before_c=heat,
        megahertz=speed_after,
        megahertz_before=speed,
        accuracy=None if request.data is None else _accuracy(session, given, request.data, path),
        file_bytes=len(content),
        notes=tuple(notes),
    )


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


def load(content: bytes, threads: int, name: str) -> onnxruntime.InferenceSession:
    """Load a program on the processor. Raises ModelError, with `name`, for one that ONNX Runtime does not take."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's have no class in common
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{name} is no program that ONNX Runtime runs ({reason}): give an .onnx file") from error


def example(session: onnxruntime.InferenceSession, name: str) -> dict[str, np.ndarray]:
    """Draw a program's one input, the same each time; dimensions that may vary are 1. Raises ModelError."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _TYPES or len(inputs[0].shape) < 2:
        told = ", ".join(f"{value.name} {value.type} {value.shape}" for value in inputs)
        raise ModelError(f"{name} takes {told or 'nothing'}, must take images alone: give a program with its weights")
    shape = [size if isinstance(size, int) and size > 0 else 1 for size in inputs[0].shape]
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return {inputs[0].name: _as(pixels, inputs[0].type)}


def repeated(
    run: Callable[[], None],
    least: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
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


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): give an .onnx file") from error


def _precision(session: onnxruntime.InferenceSession, content: bytes) -> str:
    """Tell the numbers that a program computes in: by its notes, or by operations that only eight bits need."""
    noted = session.get_modelmeta().custom_metadata_map.get("precision")
    if noted is not None:
        return str(json.loads(noted))
    return "int8" if b"DequantizeLinear" in content else "float32"


def _as(pixels: np.ndarray, kind: str) -> np.ndarray:
    return pixels if kind == "tensor(uint8)" else (pixels / np.float32(255)).astype(_TYPES[kind])


def _accuracy(session: onnxruntime.InferenceSession, given: dict[str, np.ndarray], data: Path, path: Path) -> float:
    """Return the share of labelled images that a program answers right, of the images whose label it knows."""
    from fedcaptor.common.data.source import load as images_of  # Pillow, which nothing else needs

    found, (name, shown) = images_of(str(data)), next(iter(given.items()))
    images = np.moveaxis(found.x, -1, 1)
    if images.shape[1:] != shown.shape[1:]:
        raise DataError(f"{data} has images {images.shape[1:]}, {path} takes {shown.shape[1:]}: give such images")
    kind, wanted = session.get_inputs()[0].type, session.get_outputs()[0].name
    answers = [int(session.run([wanted], {name: _as(image[None], kind)})[0].argmax()) for image in images]
    noted = session.get_modelmeta().custom_metadata_map.get("labels")
    outputs = session.get_outputs()[0].shape[-1]
    labels = np.array(json.loads(noted)) if noted is not None else np.arange(outputs)
    known = np.isin(found.y, labels)
    if not known.any():
        raise DataError(f"{data} has no image of the {len(labels)} classes that {path} knows: give some")
    return float((labels[answers] == found.y)[known].mean())


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
