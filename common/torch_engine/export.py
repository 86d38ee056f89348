"""Export a submodel for use elsewhere: as safetensors, or as a program that needs PyTorch or ONNX Runtime alone."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from fedcaptor.common.errors import ConfigError, ModelError
from fedcaptor.common.files import check_writable, replacing
from fedcaptor.common.torch_engine.standalone import Standalone

INPUT, OUTPUT = "images", "scores"
ABOUT = "fedcaptor.json"  # in a .pt2 file; the same names are entries of an .onnx file's metadata
TOLERANCE = 1e-4  # of the largest score: what a program's answers may differ by

Program = Callable[[torch.Tensor], torch.Tensor]
"""An exported network: images [N, C, H, W] in [0, 1] to scores [N, k]."""


class _FromPixels(nn.Module):
    """Map float images [N, C, H, W] in [0, 1] to scores [N, k]: normalisation becomes part of the program."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, submodel: Standalone) -> None:
        super().__init__()
        self.network = submodel.module
        for name, values in (("mean", submodel.mean), ("std", submodel.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise and classify."""
        scores: torch.Tensor = self.network((images - self.mean) / self.std)
        return scores


def check_files(paths: Iterable[Path]) -> None:
    """Check that `export` can write these files: their endings, the libraries they need, their folders.

    Raises ConfigError for the first that it cannot write.
    """
    for path in paths:
        if path.suffix not in (WEIGHTS, *_PROGRAMS):
            raise ConfigError(
                f"{path} ends in {path.suffix!r}, must end in {', '.join((WEIGHTS, *_PROGRAMS))}: rename it"
            )
        missing = [name for name in _NEEDS.get(path.suffix, ()) if find_spec(name) is None]
        if missing:
            raise ConfigError(f"{path} needs {' and '.join(missing)}: pip install 'fedcaptor[onnx]'")
        check_writable(path)


def export(submodel: Standalone, path: Path) -> None:
    """Write a submodel as the ending of `path` asks for, atomically.

    Args:
        submodel: What to write.
        path: `.safetensors` holds the weights in half precision; `.pt2` (PyTorch) and `.onnx` hold a program that takes
            any number of images [N, C, H, W] in [0, 1], and whose scores have been compared with the network's.

    Raises:
        ModelError: The network cannot be made a program, or the program's scores differ.
    """
    if path.suffix == WEIGHTS:
        submodel.write(path)
        return
    pixels = _FromPixels(submodel).eval()
    about = {"model": submodel.model, "labels": submodel.labels.tolist(), "input_shape": list(submodel.input_shape)}
    try:
        content, program = _PROGRAMS[path.suffix](pixels, _images(submodel, 2), about)
    except Exception as error:  # exporters raise errors of many kinds, with texts of many lines
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{submodel.model} cannot become {path.suffix} ({reason}): write {WEIGHTS} instead") from error
    _compare(pixels, program, submodel)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _pt2(pixels: nn.Module, images: torch.Tensor, about: dict[str, object]) -> tuple[bytes, Program]:
    """Make the content of a .pt2 file, and the program that it holds."""
    program = torch.export.export(pixels, (images,), dynamic_shapes=_any_number())
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={ABOUT: json.dumps(about)})
    return buffer.getvalue(), program.module()


def _onnx(pixels: nn.Module, images: torch.Tensor, about: dict[str, object]) -> tuple[bytes, Program]:
    """Make the content of an .onnx file, and the program that it holds."""
    import onnx
    import onnxruntime

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
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in about.items()})
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda x: torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


WEIGHTS = ".safetensors"
_PROGRAMS = {".pt2": _pt2, ".onnx": _onnx}
_NEEDS = {".onnx": ("onnx", "onnxscript", "onnxruntime")}


def _any_number() -> dict[str, dict[int, torch.export.Dim]]:
    """Let the number of images vary."""
    return {INPUT: {0: torch.export.Dim("n")}}


def _images(submodel: Standalone, count: int) -> torch.Tensor:
    """Draw images to try a program on."""
    return torch.rand((count, *submodel.input_shape), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def _compare(pixels: nn.Module, program: Program, submodel: Standalone) -> None:
    """Compare program and network on another number of images than it was made with; raises ModelError."""
    images = _images(submodel, 3)
    wanted = pixels(images)
    error = float((program(images) - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
    if not error <= TOLERANCE:
        raise ModelError(
            f"{submodel.model} answers otherwise as a program (relative error {error:.2g}, at most {TOLERANCE:g})"
        )
