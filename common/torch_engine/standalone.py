"""Keep a submodel by itself, without its base model: written to a file of its own, and read back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.class_names import Names
from fedcaptor.common.errors import ModelError
from fedcaptor.common.files import write_whole
from fedcaptor.common.torch_engine.base import CLASS_NAMES, Submodel, class_names_of
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.models import Factory
from fedcaptor.common.torch_engine.network import network, state_of
from fedcaptor.common.torch_engine.registry import names, skeleton
from fedcaptor.common.weights_file import content_of, load_state, statistic

_COSTS = "costs"  # metadata: a JSON object of `Comparison`
_INPUTS, _NORMALISED = "inputs", "normalised"  # metadata of a network that does not take pixels


@dataclass(frozen=True)
class Comparison:
    """Hold the MACs of one image, and those and the stored values of the full network."""

    macs: int
    full_macs: int
    full_parameters: int


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
        class_names: Names [k] of its outputs; None where they are not known.
        comparison: What it costs beside the full network; None in files of earlier releases.
    """

    model: str
    labels: Indices
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_shape: tuple[int, int, int]
    module: nn.Module
    pixels: bool = True
    class_names: Names | None = None
    comparison: Comparison | None = None

    @classmethod
    def of(cls, submodel: Submodel, pixels: bool = True) -> Standalone:
        """Detach a submodel from its base; the network is shared, not copied."""
        base, labels = submodel.base, submodel.classes
        names = None if base.class_names is None else tuple(base.class_names[label] for label in labels)
        macs = base.groups.macs(submodel.plan.counts())
        return cls(
            base.name,
            labels,
            base.mean,
            base.std,
            base.groups.input_shape,
            submodel.module,
            pixels,
            names,
            Comparison(macs, base.groups.macs(), base.groups.parameters()),
        )

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
            costs = json.loads(metadata[_COSTS]) if _COSTS in metadata else None
            comparison = None if costs is None else Comparison(**{key: int(value) for key, value in costs.items()})
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
        class_names = class_names_of(metadata, len(labels), path)
        return cls(name, labels, mean, std, shape, network(blank, state), pixels, class_names, comparison)

    @property
    def content(self) -> bytes:
        """Weights in half precision, and all that using them takes, as a safetensors file."""
        about = {key: json.dumps(value) for key, value in self.about.items() if key != "model"}
        about |= {} if self.pixels else {_INPUTS: _NORMALISED}
        about |= {} if self.comparison is None else {_COSTS: json.dumps(asdict(self.comparison))}
        return content_of(
            state_of(self.module), {"model": self.model, **about, "mean": str(self.mean), "std": str(self.std)}
        )

    @property
    def about(self) -> dict[str, object]:
        """What any file says of it: network, labels, class names where known, input shape."""
        names = {} if self.class_names is None else {CLASS_NAMES: list(self.class_names)}
        return {
            "model": self.model,
            "labels": self.labels.tolist(),
            **names,
            "input_shape": list(self.input_shape),
        }

    def write(self, path: Path) -> None:
        """Write `content`, atomically."""
        write_whole(path, self.content)

    def scores(self, images: Images) -> npt.NDArray[np.float32]:
        """Compute logits, float32 [N, k], of uint8 images [N, H, W, C], in the order of `labels`."""
        return logits(self.module, normalise(images, self.mean, self.std))

    def predict(self, images: Images) -> npt.NDArray[np.int64]:
        """Predict labels, int64 [N], of uint8 images [N, H, W, C]."""
        return self.labels[self.scores(images).argmax(1)]
