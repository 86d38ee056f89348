"""Measure a latency table with ONNX Runtime on the device that this runs on, of one thread and one image.

    python -m fedcaptor.client.latency_table programs.zip --out phone.latency.json

`fedcaptor latency-programs` makes the programs, `fedcaptor prune --latency-table` plans with the table: by what a
network takes on this device, wherever it is planned. It needs numpy and ONNX Runtime.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from fedcaptor.client.measure import on_fast_cores
from fedcaptor.client.program import example, load
from fedcaptor.client.sysfs import SYSFS
from fedcaptor.common.errors import FedcaptorError
from fedcaptor.common.files import check_writable
from fedcaptor.common.latency import ONNX_RUNTIME, LatencyTable, LayerTimes, monotone
from fedcaptor.common.latency_programs import LatencyPrograms
from fedcaptor.common.timing import COMPUTING, Clock, timed

POINT_SECONDS, LEAST_ROUNDS, MOST_ROUNDS = 0.02, 10, 200  # for one program
NETWORK_ROUNDS = 30


def measure_table(
    programs: LatencyPrograms, clock: Clock = COMPUTING, on_layer: Callable[[int, int], None] | None = None
) -> LatencyTable:
    """Measure a table: each layer alone, and the whole network.

    Layers alone leave out what stands between them, and may take longer than inside the network, where maps stay in
    the layout of the convolutions. So what the whole network takes beyond its layers is added to them in proportion to
    the values that they write, or all are scaled down to it. `on_layer`: called with the layers done and their number.
    """
    call = _seconds(programs, programs.nothing, MOST_ROUNDS, clock)
    whole = max(_seconds(programs, programs.network, NETWORK_ROUNDS, clock) - call, 0.0)
    alone: dict[str, np.ndarray] = {}
    for done, (name, layer) in enumerate(programs.layers.items(), 1):
        rows = [[_seconds(programs, file, MOST_ROUNDS, clock) - call for file in row] for row in layer.programs]
        alone[name] = monotone(np.maximum(rows, 0.0))
        if on_layer is not None:
            on_layer(done, len(programs.layers))
    layers_alone = sum(float(times[-1, -1]) for times in alone.values())
    scale, rest = min(whole / max(layers_alone, 1e-12), 1.0), max(whole - layers_alone, 0.0)
    written = {name: layer.positions * layer.outputs[-1] for name, layer in programs.layers.items()}
    found = {}
    for name, layer in programs.layers.items():
        between = rest * written[name] / sum(written.values()) * np.array(layer.outputs) / layer.outputs[-1]
        times = monotone(alone[name] * scale + between)
        found[name] = LayerTimes(layer.inputs, layer.outputs, tuple(map(tuple, times.tolist())))
    return LatencyTable(programs.model, programs.input_shape, programs.digest, ONNX_RUNTIME, _machine(), 1, found, call)


def _seconds(programs: LatencyPrograms, name: str, most: int, clock: Clock) -> float:
    """Measure the median seconds of a program; more repetitions where they take less."""
    session = load(programs.contents[name], 1, name)
    given = example(session, name)
    call = lambda: session.run(None, given)  # noqa: E731  a call is one line
    first = timed([call], 1, clock).item()
    rounds = min(max(int(POINT_SECONDS / first), LEAST_ROUNDS), most) if first > 0 else most
    return float(np.median(timed([call], rounds, clock)))


def _machine() -> str:
    """Describe processor and ONNX Runtime in words."""
    return f"{platform.processor() or platform.machine()}, onnxruntime {onnxruntime.__version__}"


def main(words: Sequence[str] | None = None) -> int:
    """Measure a table and write it; errors are one line, and the exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m fedcaptor.client.latency_table", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("programs", type=Path, help="file of `fedcaptor latency-programs`")
    parser.add_argument("--out", type=Path, required=True, help="table to write, .json")
    parser.add_argument("--sysfs", type=Path, default=SYSFS, help="where the kernel's files are")
    asked = parser.parse_args(words)
    try:
        check_writable(asked.out)
        programs, notes = LatencyPrograms.read(asked.programs), list[str]()
        on_fast_cores(asked.sysfs, 1, notes)
        for note in notes:
            print(note, file=sys.stderr)
        measure_table(programs).write(asked.out)
    except FedcaptorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
