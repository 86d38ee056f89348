"""A latency table holds measured seconds of each layer over a small grid of channel counts, interpolated in between.

MACs are not time: early layers with large maps and few channels, depthwise convolutions and large linear layers take
longer than their MACs say. `fedcaptor.common.torch_engine.latency` measures PyTorch on the machine that it runs on,
`fedcaptor.client.latency_table` ONNX Runtime on a phone.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedcaptor.common.errors import ModelError
from fedcaptor.common.files import replacing
from fedcaptor.common.groups import ChannelGroups

TORCH, ONNX_RUNTIME = "torch", "onnxruntime"
"""Runtimes whose seconds a table can hold."""

VERSION = 2
"""Of the file: the first release's has no runtime, and no version."""


@dataclass(frozen=True)
class LayerTimes:
    """Hold `seconds[i][j]` of a layer that reads `inputs[i]` elements (linear) or channels and makes `outputs[j]`.

    A depthwise layer has the one input count 1. Seconds never fall as counts grow (`monotone`), so that the smallest
    network is the fastest. Raises ModelError otherwise.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        times = np.array(self.seconds, np.float64)
        if times.shape != (len(self.inputs), len(self.outputs)) or not times.size:
            raise ModelError(f"latency grid is {times.shape} for {len(self.inputs)} × {len(self.outputs)} counts")
        if any((np.diff(counts) <= 0).any() or counts[0] < 1 for counts in (self.inputs, self.outputs)):
            raise ModelError(f"latency counts are {self.inputs} and {self.outputs}, must grow from 1 or more")
        if not np.isfinite(times).all() or times.min() < 0 or not np.array_equal(times, monotone(times)):
            raise ModelError("latency seconds must be at least 0 and never fall as counts grow: measure them again")

    def at(self, inputs: int, outputs: int) -> float:
        """Interpolate seconds: bilinear between the grid's counts, constant beyond them."""
        row, down = _place(self.inputs, inputs)
        column, right = _place(self.outputs, outputs)

        def along(times: tuple[float, ...]) -> float:
            return times[column] + right * (times[min(column + 1, len(times) - 1)] - times[column])

        here, below = along(self.seconds[row]), along(self.seconds[min(row + 1, len(self.seconds) - 1)])
        return here + down * (below - here)


@dataclass(frozen=True)
class LatencyTable:
    """Hold the seconds that one image takes through one network on one machine, layer by layer.

    Attributes:
        model: The network's name.
        input_shape: (C, H, W) of its images.
        digest: `ChannelGroups.digest` of the network that was measured.
        runtime: What ran it, `TORCH` or `ONNX_RUNTIME`.
        machine: Processor and versions in words, for people.
        threads: Threads that computed.
        layers: Seconds of each layer by name.
        rest: Seconds that no pruning saves.
    """

    model: str
    input_shape: tuple[int, int, int]
    digest: str
    runtime: str
    machine: str
    threads: int
    layers: Mapping[str, LayerTimes] = field(hash=False)
    rest: float = 0.0

    def check(self, groups: ChannelGroups) -> None:
        """Check that the table is of this network; raises ModelError otherwise."""
        if self.digest != groups.digest or self.layers.keys() != {layer.name for layer in groups.layers}:
            raise ModelError(
                f"latency table is of {self.model} on images {self.input_shape} (channel groups {self.digest[:8]}), "
                f"the network is {groups.model} on images {groups.input_shape} ({groups.digest[:8]}): remove the table "
                "to have it measured again"
            )

    def to_json(self) -> str:
        """Serialise the table."""
        return json.dumps({"version": VERSION, **asdict(self)}, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """Read what `to_json` wrote. Raises ModelError when the text is something else."""
        try:
            raw = json.loads(text)
            version = raw.pop("version", 1)
            if version != VERSION:
                raise ModelError(f"latency table is of version {version}, must be of {VERSION}: measure it again")
            layers = {
                str(name): LayerTimes(
                    tuple(times["inputs"]), tuple(times["outputs"]), tuple(tuple(row) for row in times["seconds"])
                )
                for name, times in raw.pop("layers").items()
            }
            return cls(**raw | {"input_shape": tuple(raw["input_shape"])}, layers=layers)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"latency table is not readable ({error}): remove it to have it measured again") from error

    def write(self, path: Path) -> None:
        """Write the table to a file, atomically."""
        with replacing(path) as temporary:
            temporary.write_text(self.to_json())

    @classmethod
    def read(cls, path: Path, groups: ChannelGroups) -> LatencyTable:
        """Read a file of `write`. Raises ModelError, naming it, when it is damaged or another network's."""
        try:
            table = cls.from_json(path.read_text())
            table.check(groups)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        return table


def monotone(seconds: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Remove from measured times [inputs, outputs] the falls that noise makes; times that never fall stay as they are.

    The result lies half way between the least grid above the times and the greatest below that never fall.
    """
    above = below = np.array(seconds, np.float64)
    for axis in range(above.ndim):
        above = np.maximum.accumulate(above, axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis), axis)
    return np.where(above == below, above, (above + below) / 2)


def _place(counts: tuple[int, ...], count: int) -> tuple[int, float]:
    """Find the last grid place at or below `count`, and how far it is on to the next one, in [0, 1)."""
    if count <= counts[0]:
        return 0, 0.0
    place = bisect_right(counts, count) - 1
    if place == len(counts) - 1:
        return place, 0.0
    return place, (count - counts[place]) / (counts[place + 1] - counts[place])
