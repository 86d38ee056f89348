"""A submodel by itself, without its base model: in a file of its own, and back."""

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
from fedcaptor.common.torch_engine.network import load_state, network, save_state, state_of
from fedcaptor.common.torch_engine.registry import names, skeleton

_INPUTS, _NORMALISED = "inputs", "normalised"  # metadata of a network that does not take pixels


@dataclass(frozen=True, eq=False)
class Standalone:
    """`labels` [k]: of its outputs, in the base model's numbering. `mean`, `std`: per channel, of images in [0, 1].
    `input_shape`: (C, H, W). `module`: in eval mode. `pixels`: false where the network takes images that were
    normalised in a way that is not known here; mean is then 0, std 1.
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
        base = submodel.base
        return cls(base.name, submodel.classes, base.mean, base.std, base.groups.input_shape, submodel.module, pixels)

    @classmethod
    def read(cls, path: Path, model: str | Factory | None = None) -> Standalone:
        """What `write` wrote. A file does not choose what is imported: `model` is or names the factory of a network
        that is not a registered one. Raises ModelError when the file is another.
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
        """Weights in half precision, and all that using them takes, as safetensors."""
        about = {"labels": json.dumps(self.labels.tolist()), "input_shape": json.dumps(self.input_shape)}
        about |= {} if self.pixels else {_INPUTS: _NORMALISED}
        save_state(
            path, state_of(self.module), {"model": self.model, **about, "mean": str(self.mean), "std": str(self.std)}
        )

    def scores(self, images: Images) -> npt.NDArray[np.float32]:
        """Logits [N, k] of uint8 images [N, H, W, C], in the order of `labels`."""
        return logits(self.module, normalise(images, self.mean, self.std))

    def predict(self, images: Images) -> npt.NDArray[np.int64]:
        """Labels [N] of uint8 images [N, H, W, C]."""
        return self.labels[self.scores(images).argmax(1)]
