"""A submodel as Python users hold it: network, labels, what it costs, and files."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedcaptor._images import Given, Normalisation, batches
from fedcaptor._measured_budgets import require_size
from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.errors import ModelError
from fedcaptor.common.files import write_whole
from fedcaptor.common.torch_engine.export import content, formats_of, precision_of
from fedcaptor.common.torch_engine.standalone import Comparison, Standalone

if TYPE_CHECKING:
    from fedcaptor.protocols import ModelFactory


@dataclass(frozen=True, eq=False, repr=False)
class Submodel:
    """A physically smaller network that answers in the labels of the network that it was pruned from.

    Made by `fedcaptor.prune`, `fedcaptor.Evidence.submodel` and `fedcaptor.load`.

    Attributes:
        kept: Channel numbers that stayed, by channel group; empty for a loaded one.
        measured: What was measured, by name: `disagreement` and agreements on images held out, `latency_ratio` with its
            quartiles; empty without a tolerance, tuning and a latency.
    """

    _file: Standalone = field(repr=False)
    kept: Mapping[str, Indices] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    _most_bytes: int | None = field(default=None, repr=False)
    _calibration: Images | None = field(default=None, repr=False)

    @property
    def module(self) -> nn.Module:
        """The network, in eval mode: normalised images [N, C, H, W] to scores [N, k] in the order of `classes`."""
        return self._file.module

    @property
    def classes(self) -> Indices:
        """Labels [k] of its outputs in the numbering of the full network, ascending."""
        return self._file.labels

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names [k] of its outputs in the order of `classes`; None where they are not known."""
        return self._file.class_names

    @property
    def name(self) -> str:
        """What the full network is called."""
        return self._file.model

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self._file.input_shape

    @property
    def macs_ratio(self) -> float:
        """Multiply-accumulates of one image over those of the full network. Raises ModelError where a file of an
        earlier release does not say.
        """
        return self._comparison.macs / self._comparison.full_macs

    @property
    def parameters_ratio(self) -> float:
        """Stored values over those of the full network. Raises ModelError as `macs_ratio`."""
        return self.parameters / self._comparison.full_parameters

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image. Raises ModelError as `macs_ratio`."""
        return self._comparison.macs

    @property
    def parameters(self) -> int:
        """Stored values: weights, biases, batch-norm statistics."""
        return sum(t.numel() for t in self.module.state_dict().values() if t.ndim)

    def scores(self, images: Given) -> npt.NDArray[np.float32]:
        """Logits [N, k] in the order of `classes`.

        Args:
            images: uint8 array [N, H, W, C]; tensor [N, C, H, W] as it was given to `fedcaptor.prune`: in [0, 1] where
                mean and standard deviation are known, normalised where they are not; or batches of such tensors.

        Raises:
            DataError: The images are of another kind than the network's.
        """
        if not isinstance(images, np.ndarray | torch.Tensor):
            return np.concatenate([self.scores(x) for x, _ in batches(images)])
        return self._file.scores(self._prepared(images))

    def predict(self, images: Given) -> npt.NDArray[np.int64]:
        """Labels [N], each one of `classes`; for `images` see `scores`."""
        return np.asarray(self.classes[self.scores(images).argmax(1)])

    def save(self, path: str | Path, *, half: bool = False, int8: bool = False, images: Given | None = None) -> Path:
        """Write the submodel to a file; its ending says what is written.

        `.safetensors` holds weights in half precision, for `fedcaptor.load`. `.pt2` (PyTorch alone) and `.onnx` (ONNX
        Runtime, needs `fedcaptor[onnx]`) are programs that take float images [N, C, H, W]: pixels in [0, 1], or
        normalised ones where the network was pruned without mean and standard deviation. Scores were compared with this
        network's before the file is there. Labels and class names are in the file's metadata.

        Args:
            path: The file.
            half: Whether a program computes in half precision: half of the bytes. `.safetensors` always does.
            int8: Whether an `.onnx` program computes in eight bits: a quarter of the bytes. Compare its answers on
                images of your own.
            images: Images of the classes, in the form that `scores` takes, to measure the ranges of eight bits on;
                those that were observed when it was pruned if left out.

        Returns:
            The path.

        Raises:
            ConfigError: Another ending, a library that is missing, a place that cannot be written, eight bits without
                images.
            ModelError: The network cannot become a program, or one that answers otherwise.
            PlanError: The file would be larger than the budget of bytes that the submodel was pruned for.
        """
        place = Path(path)
        (form,) = formats_of([place], precision_of(half, int8)).values()
        seen = self._calibration if images is None else self._prepared(images)
        made, _ = content(self._file, form, seen)
        require_size(form.name, len(made), self._most_bytes)
        write_whole(place, made)
        return place

    def __repr__(self) -> str:
        classes = self.classes.tolist() if self.class_names is None else ", ".join(self.class_names)
        made = f"<fedcaptor.Submodel of {self.name} for classes {classes}: {self.parameters:,} parameters"
        if self._file.comparison is None:
            return f"{made}>"
        ratios = f"{made} ({self.parameters_ratio:.1%}), {self.macs:,} MACs ({self.macs_ratio:.1%})"
        return "".join([ratios, *(f", {name} {value:.4g}" for name, value in self.measured.items()), ">"])

    @property
    def _comparison(self) -> Comparison:
        if self._file.comparison is None:
            raise ModelError(
                f"this file of {self.name} is of an earlier release, which did not store what the full network costs: "
                "prune and save it again"
            )
        return self._file.comparison

    def _prepared(self, images: Given) -> Images:
        """Images in the engine's form."""
        file = self._file
        normalisation = Normalisation(file.mean, file.std, file.pixels)
        if not isinstance(images, np.ndarray | torch.Tensor):
            return np.concatenate([normalisation.applied(x) for x, _ in batches(images)])
        return normalisation.applied(images)


def load(path: str | Path, network: str | nn.Module | ModelFactory | None = None) -> Submodel:
    """Read a submodel that was saved as `.safetensors`.

    Args:
        path: The file.
        network: What to fill with the file's weights: the full network that was pruned (it stays as it is), a factory
            called with (number of outputs, (C, H, W)), or its name as `package.module:factory`. None for a network
            that is registered by name: a file never chooses what is imported.

    Returns:
        The submodel, its weights rounded to half precision.

    Raises:
        ModelError: The file is none of a submodel, or of another network.

    Example:
        ```python
        small = fedcaptor.prune(network, images, classes=[3, 5], macs=0.3)
        small.save("small.safetensors")
        again = fedcaptor.load("small.safetensors", network)
        ```
    """
    if isinstance(network, nn.Module):
        whole = network
        return Submodel(Standalone.read(Path(path), lambda classes, shape: copy.deepcopy(whole).cpu().float()))
    return Submodel(Standalone.read(Path(path), network))
