"""The file that carries a latency table's programs to a device: what is in it, and reading it back.

`common/onnx_latency.py` makes the programs; this part needs no ONNX, as the device that reads them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

from fedcaptor.common.errors import ModelError

VERSION = 1
_ABOUT = "programs.json"


@dataclass(frozen=True)
class LayerPrograms:
    """Name the programs of one layer: `programs[i][j]` reads `inputs[i]` and makes `outputs[j]`, as in `LayerTimes`.

    `positions`: of the map that it makes.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    programs: tuple[tuple[str, ...], ...]
    positions: int


@dataclass(frozen=True)
class LatencyPrograms:
    """Hold the programs of a network's latency table.

    Attributes:
        model: The network's name.
        input_shape: (C, H, W) of its images.
        digest: `ChannelGroups.digest` of the network.
        layers: The programs' names by layer.
        network: Name of the whole network's program.
        nothing: Name of a program that computes nothing: the time of a call.
        contents: The programs by name.
    """

    model: str
    input_shape: tuple[int, int, int]
    digest: str
    layers: Mapping[str, LayerPrograms] = field(hash=False)
    network: str
    nothing: str
    contents: Mapping[str, bytes] = field(hash=False, repr=False)

    def to_bytes(self) -> bytes:
        """Return the content of a file, the same for the same programs."""
        about = {name: value for name, value in asdict(self).items() if name != "contents"}
        made = io.BytesIO()
        with ZipFile(made, "w", ZIP_DEFLATED) as file:
            file.writestr(ZipInfo(_ABOUT), json.dumps({"version": VERSION, **about}), ZIP_DEFLATED)
            for name, content in self.contents.items():
                file.writestr(ZipInfo(name), content, ZIP_DEFLATED)
        return made.getvalue()

    @classmethod
    def read(cls, path: Path) -> LatencyPrograms:
        """Read a file of `to_bytes`. Raises ModelError when it is something else."""
        try:
            with ZipFile(path) as file:
                raw = json.loads(file.read(_ABOUT))
                if raw.pop("version", None) != VERSION:
                    raise ModelError(f"{path} is of another version than {VERSION}: make the programs again")
                layers = {
                    str(name): LayerPrograms(
                        tuple(each["inputs"]),
                        tuple(each["outputs"]),
                        tuple(tuple(row) for row in each["programs"]),
                        each["positions"],
                    )
                    for name, each in raw.pop("layers").items()
                }
                names = [raw["network"], raw["nothing"]]
                names += [name for layer in layers.values() for row in layer.programs for name in row]
                contents = {name: file.read(name) for name in names}
            return cls(**raw | {"input_shape": tuple(raw["input_shape"])}, layers=layers, contents=contents)
        except (OSError, BadZipFile, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(
                f"{path} holds no programs of a latency table ({error}): make it with `fedcaptor latency-programs`"
            ) from error
