"""The base model, with all that pruning takes, and the submodels that are made of it."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from fedcaptor.common.arrays import Array, Images, Indices
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.class_names import Names
from fedcaptor.common.domain import adapted
from fedcaptor.common.errors import ModelError, NormalisationWarning
from fedcaptor.common.groups import ChannelGroups, State
from fedcaptor.common.plan import Plan
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.network import network, state_of
from fedcaptor.common.torch_engine.registry import skeleton
from fedcaptor.common.torch_engine.trace import trace
from fedcaptor.common.weights_file import load_state, require_finite, statistic, weights_digest

CLASS_NAMES = "class_names"  # metadata of weights and submodels: a JSON list, one name an output


@dataclass(frozen=True, eq=False)
class BaseModel:
    """Hold a full network with all that is needed to prune it.

    Attributes:
        name: A registered model's name, or `package.module:factory`.
        state: Arrays of the weights by state-dict key.
        groups: Channel groups, traced from the network.
        mean: Of each input channel, of images in [0, 1].
        std: Of each input channel, of images in [0, 1].
        module: The network itself, in eval mode.
        architecture: Makes a network of this architecture to fill; None: the registry makes it by `name`.
        class_names: Names by label; None where the weights do not have them.
    """

    name: str
    state: State
    groups: ChannelGroups
    mean: tuple[float, ...]
    std: tuple[float, ...]
    module: nn.Module
    architecture: Callable[[], nn.Module] | None = None
    class_names: Names | None = None

    @classmethod
    def of(
        cls,
        module: nn.Module,
        name: str,
        input_shape: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> BaseModel:
        """A network in memory, copied to the processor in single precision: the caller's stays as it is.

        Raises ModelError when it cannot be copied or traced, or a weight is not finite.
        """
        try:
            copied = copy.deepcopy(module).cpu().float()
            own = network(copy.deepcopy(copied), state_of(copied))
        except (RuntimeError, TypeError) as error:
            raise ModelError(f"{name} cannot be copied ({error}): remove what ties its tensors to a graph") from error
        require_finite(state_of(copied), name)
        groups = trace(own, name, input_shape)
        return cls(name, state_of(copied), groups, tuple(mean), tuple(std), own, lambda: copy.deepcopy(own))

    @classmethod
    def load(
        cls,
        weights: Path,
        name: str,
        input_shape: tuple[int, int, int],
        statistics: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> BaseModel:
        """Load weights from a safetensors file and trace the network's channel groups.

        Args:
            weights: The file; the number of classes, their names, mean and std are read from it (mean and std 0.5 where
                absent, with a warning).
            name: The architecture, as for `registry.build`.
            input_shape: (C, H, W) of the images.
            statistics: Mean and std, of all channels alike or of each, in place of the file's.

        Raises:
            ModelError: The file cannot be read, has weights that are not finite, is not of this architecture, or the
                network cannot be sliced.
        """
        state, metadata = load_state(weights)
        require_finite(state, weights)
        classes = _output_size(state, weights)
        module = network(skeleton(name, classes, input_shape), state)
        if statistics is not None:
            alike = [values * input_shape[0] if len(values) == 1 else values for values in map(tuple, statistics)]
            metadata |= {"mean": str(alike[0]), "std": str(alike[1])}
        missing = [key for key in ("mean", "std") if key not in metadata]
        if missing:
            warnings.warn(
                f"{weights} does not say {' and '.join(missing)} of the pixels that it was trained on, 0.5 is "
                "supposed: give --mean and --std to prune, or write both into the file's metadata",
                NormalisationWarning,
                stacklevel=2,
            )
        return cls(
            name,
            state,
            trace(module, name, input_shape),
            statistic(metadata, "mean", 0.5, input_shape[0]),
            statistic(metadata, "std", 0.5, input_shape[0]),
            module,
            class_names=class_names_of(metadata, classes, weights),
        )

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 (hex) of the weights and of how images are normalised: what `groups.digest` does not tell apart."""
        return weights_digest(self.state, self.mean, self.std)

    @property
    def output_weights(self) -> Array:
        """Return what the last layer weighs each class by, [classes, …]."""
        return np.asarray(self.state[f"{self._last_layer}.weight"]).reshape(self.groups.classes, -1)

    def calibrated(self, found: Calibration) -> State:
        """Return the tensors with a calibration folded into the last layer, whose scores are then log-likelihoods.

        Raises ModelError where that layer has no bias.
        """
        weight, bias = (f"{self._last_layer}.{part}" for part in ("weight", "bias"))
        if bias not in self.state:
            raise ModelError(f"{self.name}: {self._last_layer} has no bias to calibrate: give the last layer one")
        scaled = {name: np.asarray(self.state[name]) / np.float32(found.temperature) for name in (weight, bias)}
        return self.state | scaled | {bias: scaled[bias] + found.bias.astype(np.float32)}

    @property
    def _last_layer(self) -> str:
        return next(group.producers[0] for group in self.groups.groups if group.output)

    def scores(self, images: Images) -> npt.NDArray[np.float32]:
        """Compute logits, float32 [N, classes], of uint8 images [N, H, W, C]."""
        return logits(self.module, normalise(images, self.mean, self.std))

    def adapted(self, moments: Array) -> BaseModel:
        """Return the model with its batch norms moved by moments (`common.domain`); it shares all other tensors.

        Raises DataError when they are not as many as the network's.
        """
        state = adapted(self.state, moments)
        return replace(self, state=state, module=network(self.skeleton(), state, share=True))

    def rebuild(self, state: State) -> nn.Module:
        """Build a network of this architecture with other, possibly sliced, tensors."""
        return network(self.skeleton(), state)

    def skeleton(self) -> nn.Module:
        """Make a network of this architecture for `network` to fill."""
        if self.architecture is not None:
            return self.architecture()
        return skeleton(self.name, self.groups.classes, self.groups.input_shape)


@dataclass(frozen=True, eq=False)
class Submodel:
    """Hold a physically smaller network that answers in the base model's label space.

    Attributes:
        base: The model that it was pruned from.
        plan: Which channels and classes it keeps.
        module: The network itself, in eval mode, with one output a kept class.
    """

    base: BaseModel
    plan: Plan
    module: nn.Module

    @property
    def classes(self) -> Indices:
        """Return the original labels [k] of its outputs."""
        return self.plan.classes(self.base.groups)

    def predict(self, images: Images) -> npt.NDArray[np.int64]:
        """Predict original labels, int64 [N], of uint8 images [N, H, W, C]."""
        return self.classes[self.scores(images).argmax(1)]

    def scores(self, images: Images) -> npt.NDArray[np.float32]:
        """Compute logits, float32 [N, k], of uint8 images [N, H, W, C], in the order of `classes`."""
        return logits(self.module, normalise(images, self.base.mean, self.base.std))

    @property
    def macs_ratio(self) -> float:
        """MACs over those of the base model."""
        return self.base.groups.macs_ratio(self.plan.counts())

    @property
    def parameters_ratio(self) -> float:
        """Stored values over those of the base model."""
        return self.base.groups.parameters_ratio(self.plan.counts())


def _output_size(state: State, weights: Path) -> int:
    """Read the number of classes off the last linear layer, or the last convolution of a network without one.

    Raises ModelError without either.
    """
    found = [tensor for name, tensor in state.items() if name.endswith("weight") and tensor.ndim >= 2]
    last = [tensor for tensor in found if tensor.ndim == 2] or found
    if not last:
        raise ModelError(f"{weights} holds no layer that could give the classes: use other weights")
    return int(last[-1].shape[0])


def class_names_of(metadata: dict[str, str], classes: int, file: Path) -> Names | None:
    """Read class names from a file's metadata, None where absent. Raises ModelError for others than one a class."""
    if CLASS_NAMES not in metadata:
        return None
    try:
        names = json.loads(metadata[CLASS_NAMES])
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{file}: {CLASS_NAMES} must be a JSON list of {classes} names, one a class: write it again")
    return tuple(names)
