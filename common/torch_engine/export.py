"""Export a submodel for use elsewhere: as safetensors, or as a program that needs PyTorch or ONNX Runtime alone.

Programs compute in single precision, in half precision, or (`.onnx`) in whole numbers of eight bits.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import torch
from torch import nn

from fedcaptor.common.arrays import Images
from fedcaptor.common.errors import ConfigError, ModelError
from fedcaptor.common.files import check_writable
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.torch_engine.standalone import Standalone

INPUT, OUTPUT = "images", "scores"
ABOUT = "fedcaptor.json"  # in a .pt2 file; the same names are entries of an .onnx file's metadata


class Precision(StrEnum):
    """Name the numbers that a program computes in."""

    single = "single"
    half = "half"
    int8 = "int8"


TOLERANCES = {Precision.single: 1e-4, Precision.half: 0.02, Precision.int8: 0.5}
"""Of the largest score: what a program's scores may differ by. Eight bits are for images like those of calibration, so
there only what is broken is refused: compare answers on images of your own."""
_VALUE_BYTES = {Precision.single: 4, Precision.half: 2, Precision.int8: 1}

Program = Callable[[torch.Tensor], torch.Tensor]
"""An exported network: images [N, C, H, W] in [0, 1] to scores [N, k]."""


@torch.no_grad()
def agreement(submodel: Standalone, program: Program, images: Images, batch: int = 64) -> float:
    """Return the share of images [N, H, W, C] that a program answers as the submodel does."""
    answers = [program(part).argmax(1).numpy() for part in _pixels(submodel, images).split(batch)]
    return float((np.concatenate(answers) == submodel.scores(images).argmax(1)).mean())


class _FromPixels(nn.Module):
    """Map float images [N, C, H, W] in [0, 1] to scores [N, k]: normalisation becomes part of the program."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, submodel: Standalone, half: bool = False) -> None:
        super().__init__()
        self.half_precision = half
        self.network = copy.deepcopy(submodel.module).half() if half else submodel.module
        for name, values in (("mean", submodel.mean), ("std", submodel.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise and classify."""
        x = (images - self.mean) / self.std
        scores: torch.Tensor = self.network(x.half()).float() if self.half_precision else self.network(x)
        return scores


@dataclass(frozen=True)
class Format:
    """Say how a submodel is written.

    Attributes:
        ending: `.safetensors` holds the weights in half precision; `.pt2` (PyTorch) and `.onnx` hold a program that
            takes any number of images [N, C, H, W] in [0, 1].
        precision: What a program computes in.

    Raises:
        ConfigError: Another ending, eight bits for another than `.onnx`, or a library that is missing.
    """

    ending: str
    precision: Precision = Precision.single

    def __post_init__(self) -> None:
        if self.ending not in (WEIGHTS, *_PROGRAMS):
            raise ConfigError(f"a file ends in {self.ending!r}, must end in {', '.join((WEIGHTS, *_PROGRAMS))}")
        if self.precision is Precision.int8 and self.ending != ".onnx":
            raise ConfigError(f"int8 is for .onnx files, not for {self.ending}: leave out int8, or that file")
        missing = [name for name in _NEEDS.get(self.ending, ()) if find_spec(name) is None]
        if missing:
            raise ConfigError(f"{self.ending} needs {' and '.join(missing)}: pip install 'fedcaptor[onnx]'")

    @property
    def name(self) -> str:
        """The ending, and the precision where it is not the ending's own."""
        return (
            self.ending
            if self.precision is Precision.single or self.ending == WEIGHTS
            else f"{self.ending} ({self.precision})"
        )

    @property
    def value_bytes(self) -> int:
        """Bytes that a stored value takes."""
        return 2 if self.ending == WEIGHTS else _VALUE_BYTES[self.precision]


def precision_of(half: bool, int8: bool) -> Precision:
    """Return the precision that two switches ask for. Raises ConfigError for both."""
    if half and int8:
        raise ConfigError("half and int8 are both given: choose one")
    return Precision.half if half else Precision.int8 if int8 else Precision.single


def formats_of(paths: Iterable[Path], precision: Precision = Precision.single) -> dict[Path, Format]:
    """Return the formats of files, after checking that they can be written. Raises ConfigError for one that cannot."""
    found = {}
    for path in paths:
        try:
            found[path] = Format(path.suffix, precision)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        check_writable(path)
    return found


def content(
    submodel: Standalone, form: Format, images: Images | None = None, compare: bool = True
) -> tuple[bytes, Program]:
    """Make a file, and what it holds as a function.

    Args:
        submodel: What to write.
        form: How.
        images: Images of its classes [N, H, W, C], which eight bits measure ranges of activations on.
        compare: Whether the program's scores are compared with the network's.

    Returns:
        The file's content, and the program that it holds.

    Raises:
        ConfigError: Eight bits without images.
        ModelError: The network cannot be made a program, or the program's scores differ.
    """
    if form.ending == WEIGHTS:
        return submodel.content, _FromPixels(submodel).eval()
    pixels = _FromPixels(submodel, form.precision is Precision.half).eval()
    try:
        about = submodel.about | ({"precision": "float16"} if form.precision is Precision.half else {})
        made, program = _PROGRAMS[form.ending](pixels, _images(submodel, 2), about)
        tried = _images(submodel, 3)
        if form.precision is Precision.int8:
            tried = _pixels(submodel, _drawn(images))
            made, program = _quantised(made, tried)
    except ConfigError:
        raise
    except Exception as error:  # exporters raise errors of many kinds, with texts of many lines
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{submodel.model} cannot become {form.name} ({reason}): write {WEIGHTS} instead") from error
    if compare:
        _compare(_FromPixels(submodel).eval(), program, tried, submodel.model, TOLERANCES[form.precision])
    return made, program


def _pt2(pixels: nn.Module, images: torch.Tensor, about: dict[str, object]) -> tuple[bytes, Program]:
    """Make the content of a .pt2 file, and the program that it holds."""
    program = torch.export.export(pixels, (images,), dynamic_shapes=_any_number())
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of source with their paths: bytes that no runtime reads
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={ABOUT: json.dumps(about)})
    return _packed(buffer), program.module()


def _packed(archive: io.BytesIO) -> bytes:
    """Compress the text in an archive, which torch stores as it is: most of a small network's file."""
    packed = io.BytesIO()
    with ZipFile(archive) as given, ZipFile(packed, "w") as made:
        for entry in given.infolist():
            kind = ZIP_DEFLATED if entry.filename.endswith(".json") else ZIP_STORED
            made.writestr(entry.filename, given.read(entry), kind)
    return packed.getvalue()


def _onnx(pixels: nn.Module, images: torch.Tensor, about: dict[str, object]) -> tuple[bytes, Program]:
    """Make the content of an .onnx file, and the program that it holds."""
    import onnx

    made = torch.onnx.export(
        pixels,
        (images,),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=_any_number(),
        dynamo=True,
        verbose=False,
    )
    assert made is not None  # as it is without `dynamo`
    model = made.model_proto  # made anew by each look
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]  # lines of source with their paths: bytes that no runtime reads
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in about.items()})
    return _in_onnx_runtime(model.SerializeToString())


def _in_onnx_runtime(content: bytes) -> tuple[bytes, Program]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda x: torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


def _quantised(content: bytes, images: torch.Tensor) -> tuple[bytes, Program]:
    """Turn an .onnx file into one of eight bits."""
    from fedcaptor.common.onnx_quantisation import quantised

    return _in_onnx_runtime(quantised(content, images.numpy()))


WEIGHTS = ".safetensors"
_PROGRAMS = {".pt2": _pt2, ".onnx": _onnx}
_NEEDS = {".onnx": ("onnx", "onnxscript", "onnxruntime")}


def _any_number() -> dict[str, dict[int, torch.export.Dim]]:
    """Let the number of images vary."""
    return {INPUT: {0: torch.export.Dim("n")}}


def _images(submodel: Standalone, count: int) -> torch.Tensor:
    """Draw images to try a program on."""
    return torch.rand((count, *submodel.input_shape), generator=torch.Generator().manual_seed(0))


def _drawn(images: Images | None) -> Images:
    """Choose images, evenly, to measure ranges on. Raises ConfigError where there are none."""
    if images is None or len(images) == 0:
        raise ConfigError("int8 measures ranges on images, 0 are known: give images of the target classes")
    from fedcaptor.common.onnx_quantisation import calibration_images

    return images[calibration_images(len(images))]


def _pixels(submodel: Standalone, images: Images) -> torch.Tensor:
    """Turn images of the engine's form into what a program takes."""
    x = normalise(images, submodel.mean, submodel.std)
    scale = [torch.tensor(values).view(1, -1, 1, 1) for values in (submodel.std, submodel.mean)]
    return (x * scale[0] + scale[1]).contiguous()


@torch.no_grad()
def _compare(pixels: nn.Module, program: Program, images: torch.Tensor, model: str, tolerance: float) -> None:
    """Compare program and network on another number of images than it was made with; raises ModelError."""
    wanted = pixels(images)
    error = float((program(images) - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
    if not error <= tolerance:
        raise ModelError(f"{model} answers otherwise as a program (relative error {error:.2g}, at most {tolerance:g})")
