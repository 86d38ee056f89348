"""Keep a submodel by itself, without its base model: written to a file of its own, and read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.errors import ModelError
from fedcaptor.common.torch_engine.base import Submodel, statistic
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.models import Factory
from fedcaptor.common.torch_engine.network import network, state_of
from fedcaptor.common.torch_engine.registry import names, skeleton
from fedcaptor.common.weights_file import load_state, save_state

_INPUTS, _NORMALISED = "inputs", "normalised"  # metadata of a network that does not take pixels


@dataclass(frozen=True, eq=False)
class Standalone:
    """Hold a submodel without its base model.

    Attributes:
        model: A registered model's name, or `package.module:factory`.
        labels: [k], labels of its outputs in the base model's numbering.
        mean: Of each channel, of images in [0, 1].
        std: Of each channel, of images in [0, 1].
        input_shape: (C, H, W) of its images.
        module: The network, in eval mode.
        pixels: False where the network takes images that were normalised in a way not known here; `mean` is then 0 and
            `std` 1.
    """

    model: str
    labels: Indices
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_shape: tuple[int, int, int]
    module: nn.Module
    pixels: bool = True

    @classmethod
    def of(cls, submodel: Submodel, pixels: bool = True) -> Standalone:
        """Detach a submodel from its base; the network is shared, not copied."""
        base = submodel.base
        return cls(base.name, submodel.classes, base.mean, base.std, base.groups.input_shape, submodel.module, pixels)

    @classmethod
    def read(cls, path: Path, model: str | Factory | None = None) -> Standalone:
        """Read a file of `write`.

        Args:
            path: The file.
            model: Factory of a network that is not a registered one, or its name: a file does not choose what is
                imported.

        Raises:
            ModelError: The file is something else, or its network is not registered and `model` is not given.
        """
        state, metadata = load_state(path)
        try:
            name, labels = metadata["model"], np.array(json.loads(metadata["labels"]), dtype=np.int64)
            channels, height, width = (int(side) for side in json.loads(metadata["input_shape"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path} is no submodel ({error!r}): give a file of `fedcaptor prune --out`") from error
        if model is None and name not in names():
            raise ModelError(f"{path} holds a network of {name!r}, not one of {', '.join(names())}: name its factory")
        shape = (channels, height, width)
        mean, std = (statistic(metadata, key, 0.5, channels) for key in ("mean", "std"))
        pixels = metadata.get(_INPUTS) != _NORMALISED
        if model is None or isinstance(model, str):
            blank, name = skeleton(model or name, len(labels), shape), model or name
        else:
            blank = model(len(labels), shape)
        return cls(name, labels, mean, std, shape, network(blank, state), pixels)

    def write(self, path: Path) -> None:
        """Write weights in half precision, and all that using them takes, as safetensors."""
        about = {"labels": json.dumps(self.labels.tolist()), "input_shape": json.dumps(self.input_shape)}
        about |= {} if self.pixels else {_INPUTS: _NORMALISED}
        save_state(
            path, state_of(self.module), {"model": self.model, **about, "mean": str(self.mean), "std": str(self.std)}
        )

    def scores(self, images: Images) -> npt.NDArray[np.float32]:
        """Compute logits, float32 [N, k], of uint8 images [N, H, W, C], in the order of `labels`."""
        return logits(self.module, normalise(images, self.mean, self.std))

    def predict(self, images: Images) -> npt.NDArray[np.int64]:
        """Predict labels, int64 [N], of uint8 images [N, H, W, C]."""
        return self.labels[self.scores(images).argmax(1)]
