"""Channel groups: the serialisable description of which channels of a network must be removed together.

A network is traced once (`torch_engine.trace`); from then on the planner, the slicer and weight reconstruction work
from this description, and need numpy alone to read it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from fedcaptor.common.errors import ModelError

State = dict[str, Any]
"""A model's tensors by state-dict key, as numpy arrays."""


@dataclass(frozen=True)
class TensorSlice:
    """Say which elements along one dimension of one tensor belong to a group's channels.

    Element `offset + channel * taps + t` along `dim`, for t in [0, taps), belongs to `channel`.
    `taps > 1` where a flattened map feeds a linear layer, and where a channel of the group stands for all channels of a
    grouped convolution's group; `offset > 0` behind a concatenation.
    """

    tensor: str
    dim: int
    taps: int = 1
    offset: int = 0


@dataclass(frozen=True)
class Consumer:
    """Describe a convolution (groups=1) or linear layer that reads a group's channels and mixes them.

    Attributes:
        layer: The module's name.
        taps: Elements per channel along the layer's input dimension (see `TensorSlice`).
        offset: First of these elements.
        norm: The batch norm that directly follows, into whose running mean a constant can be folded when the layer has
            no bias; None if there is none.
        rectified: Largest value that a rectifier, directly behind both, lets pass (infinity: any); None if there is
            none.
    """

    layer: str
    taps: int = 1
    offset: int = 0
    norm: str | None = None
    rectified: float | None = None


@dataclass(frozen=True)
class Group:
    """Describe channels that can only be kept or removed together.

    Around a grouped convolution a channel of this description is a whole group of the convolution: all channels that it
    reads and makes, so that the groups that stay are of one size.

    Attributes:
        name: The name of the first layer that makes them.
        channels: How many there are.
        slices: All that is removed with a channel. Depthwise and grouped convolutions and batch norms of the channels
            appear here only.
        producers: Layers whose outputs are these channels (several behind a residual sum).
        consumers: Layers that read them, in execution order.
        output: Whether the channels are the classes, which no layer reads.
    """

    name: str
    channels: int
    slices: tuple[TensorSlice, ...]
    producers: tuple[str, ...]
    consumers: tuple[Consumer, ...] = ()
    output: bool = False

    @property
    def width(self) -> int:
        """Return how many channels of the first producer one channel stands for: 1 but for grouped convolutions."""
        first = f"{self.name}.weight"
        return next((part.taps for part in self.slices if (part.tensor, part.dim) == (first, 0)), 1)

    def step(self, multiple: int) -> int:
        """Return the step in which channels go, so that those of the layers are multiples of `multiple`."""
        return multiple // math.gcd(multiple, self.width)

    def smallest(self, multiple: int) -> int:
        """Return how many channels stay at least when they go in multiples."""
        return min(self.channels, self.step(multiple))

    def in_units(self, units: int) -> Group:
        """Describe these channels as so many units of neighbouring ones; `units` divides their number."""
        size = self.channels // units
        return replace(
            self,
            channels=units,
            slices=tuple(replace(part, taps=part.taps * size) for part in self.slices),
            consumers=tuple(replace(reader, taps=reader.taps * size) for reader in self.consumers),
        )


@dataclass(frozen=True)
class Layer:
    """Give the cost of one convolution or linear layer.

    MACs = positions × kernel × inputs × in_taps × outputs × out_taps (without inputs and in_taps for a depthwise or
    grouped convolution).

    Attributes:
        name: The module's name.
        positions: Map positions of its output; 1 for a linear layer behind a flatten.
        kernel: Positions of its kernel, 1 for a linear layer; for a grouped convolution times the inputs of a filter.
        full_inputs: Input channels of the unpruned layer, in those of the group that it reads.
        full_outputs: Output channels of the unpruned layer, in those of the group that it makes.
        inputs: The group that it reads; None where the number is fixed (image channels).
        outputs: The group that it makes; None where the number is fixed.
        depthwise: Whether the number of inputs of a filter never changes: a depthwise or grouped convolution.
        in_taps: Input elements per channel, as `Consumer.taps`.
        out_taps: Outputs per channel: 1 but for groups of a grouped convolution.
    """

    name: str
    positions: int
    kernel: int
    full_inputs: int
    full_outputs: int
    inputs: str | None
    outputs: str | None
    depthwise: bool = False
    in_taps: int = 1
    out_taps: int = 1


@dataclass(frozen=True)
class ChannelGroups:
    """Hold all channel groups of one network, with its cost model.

    Attributes:
        model: The network's name.
        input_shape: (C, H, W) of its images.
        groups: In execution order.
        layers: Costs, in execution order.
        tensors: Shape of every state-dict tensor.
        whole: Why channels are in no group, so that all of them always stay, by the first layer that makes them; not
            part of what is serialised.
    """

    model: str
    input_shape: tuple[int, int, int]
    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    tensors: dict[str, tuple[int, ...]] = field(hash=False)
    whole: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)

    @cached_property
    def by_name(self) -> dict[str, Group]:
        """Look groups up by name."""
        return {g.name: g for g in self.groups}

    @property
    def output(self) -> Group:
        """Return the group of the classes."""
        return next(g for g in self.groups if g.output)

    @property
    def prunable(self) -> tuple[Group, ...]:
        """Return all groups but the classes, in execution order."""
        return tuple(g for g in self.groups if not g.output)

    @property
    def kept_whole(self) -> list[str]:
        """Say in words which channels always stay, one line a reason."""
        layers: dict[str, list[str]] = {}
        for layer, reason in self.whole.items():
            layers.setdefault(reason, []).append(layer)
        return [f"all channels of {', '.join(names)}: {reason}" for reason, names in layers.items()]

    @property
    def classes(self) -> int:
        """Return the number of classes of the full network."""
        return self.output.channels

    def macs(self, kept: Mapping[str, int] | None = None) -> int:
        """Count the multiply-accumulate operations (MACs) of one image; `kept`: channels by group, absent = all."""
        return sum(self.layer_macs(layer, kept or {}) for layer in self.layers)

    def layer_macs(self, layer: Layer, kept: Mapping[str, int]) -> int:
        """Count the MACs of one image in one layer; `kept`: channels by group, absent = all."""
        outputs = kept.get(layer.outputs, layer.full_outputs) if layer.outputs else layer.full_outputs
        outputs *= layer.out_taps
        if layer.depthwise:
            return layer.positions * layer.kernel * outputs
        inputs = kept.get(layer.inputs, layer.full_inputs) if layer.inputs else layer.full_inputs
        return layer.positions * layer.kernel * inputs * layer.in_taps * outputs

    def shapes(self, kept: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors after slicing to `kept` channels a group (absent = all)."""
        shapes = {name: list(shape) for name, shape in self.tensors.items()}
        for group in self.groups:
            removed = group.channels - kept.get(group.name, group.channels)
            for part in group.slices:
                shapes[part.tensor][part.dim] -= removed * part.taps
        return {name: tuple(shape) for name, shape in shapes.items()}

    def parameters(self, kept: Mapping[str, int] | None = None) -> int:
        """Count the stored values (weights, biases, batch-norm statistics; batch counters excluded)."""
        return sum(math.prod(s) for s in self.shapes(kept or {}).values() if s)

    def file_bytes(self, kept: Mapping[str, int] | None = None) -> int:
        """Return the most bytes that a submodel's file has: two a stored value, and `file_overhead`.

        A tensor with values beyond half precision takes twice its share (`save_state`).
        """
        return 2 * self.parameters(kept) + self.file_overhead

    @cached_property
    def file_overhead(self) -> int:
        """Return the most bytes of a file beside its values: tensors' names, shapes and places, counters, any plan."""
        end = 4 * self.parameters()
        places = {name: {"dtype": "F16", "shape": s, "data_offsets": [end, end]} for name, s in self.tensors.items()}
        plan = json.dumps({group.name: list(range(group.channels)) for group in self.groups})
        header = json.dumps([places, plan, json.dumps(list(self.tensors)), self.model, self.digest])
        statistics = 64 * self.input_shape[0]  # mean and deviation of each input channel
        return len(header) + statistics + 256 + 8 * sum(not shape for shape in self.tensors.values())

    def macs_ratio(self, kept: Mapping[str, int]) -> float:
        """Divide the MACs of `kept` channels by those of the full model."""
        return self.macs(kept) / self.macs()

    def parameters_ratio(self, kept: Mapping[str, int]) -> float:
        """Divide the stored values of `kept` channels by those of the full model."""
        return self.parameters(kept) / self.parameters()

    def to_json(self) -> str:
        """Serialise the description.

        `digest` is the hash of this text and names latency tables and runs, so keys and values must not change: slices
        are called `cuts`, and each consumer says of which kind it is and whether it has a bias.
        """
        raw = asdict(self)
        del raw["whole"]
        for layer in raw["layers"]:
            if layer["out_taps"] == 1:
                del layer["out_taps"]
        for group in raw["groups"]:
            group["cuts"] = group.pop("slices")
            for consumer in group["consumers"]:
                weight = self.tensors[f"{consumer['layer']}.weight"]
                consumer["kind"] = "linear" if len(weight) == 2 else "conv"
                consumer["bias"] = f"{consumer['layer']}.bias" in self.tensors
        return json.dumps(raw, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ChannelGroups:
        """Read what `to_json` wrote. Raises ModelError when the text is something else."""
        try:
            raw = json.loads(text)
            return cls(
                model=raw["model"],
                input_shape=tuple(raw["input_shape"]),
                groups=tuple(_group(group) for group in raw["groups"]),
                layers=tuple(Layer(**layer) for layer in raw["layers"]),
                tensors={name: tuple(shape) for name, shape in raw["tensors"].items()},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"channel-group file is not readable ({error}): trace the model again") from error

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the description, hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _group(raw: Mapping[str, Any]) -> Group:
    """Read one group as `to_json` writes it."""
    derived = ("kind", "bias")  # `to_json` takes them from the tensors' names and shapes
    return Group(
        name=raw["name"],
        channels=raw["channels"],
        slices=tuple(TensorSlice(**part) for part in raw["cuts"]),
        producers=tuple(raw["producers"]),
        consumers=tuple(
            Consumer(**{key: value for key, value in consumer.items() if key not in derived})
            for consumer in raw["consumers"]
        ),
        output=raw["output"],
    )
