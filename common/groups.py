"""Channel groups: the serialisable description of what must be cut together in a network.

A network is traced once (`torch_engine.trace`); from then on planner, slicer and merging need numpy alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from fedcaptor.common.errors import ModelError

State = dict[str, Any]
"""A model's tensors by state-dict key, as numpy arrays."""


@dataclass(frozen=True)
class Cut:
    """One dimension of one tensor that carries the group's channels.

    Element `offset + channel * taps + t` along `dim`, for t in [0, taps), belongs to `channel`.
    `taps > 1` where a flattened map feeds a linear layer; `offset > 0` behind a concatenation.
    """

    tensor: str
    dim: int
    taps: int = 1
    offset: int = 0


@dataclass(frozen=True)
class Consumer:
    """A convolution (groups=1) or linear layer that reads the group's channels and mixes them.

    `taps`: elements per channel along the layer's input dimension (see `Cut`). `norm`: the batch norm that directly
    follows, into whose running mean a constant can be folded when the layer has no bias; None if there is none.
    `rectified`: largest value that a rectifier, directly behind both, lets pass (infinity: any); None if there is none.
    """

    layer: str
    kind: str  # "conv" | "linear"
    taps: int = 1
    offset: int = 0
    bias: bool = False
    norm: str | None = None
    rectified: float | None = None


@dataclass(frozen=True)
class Group:
    """Channels that live and die together.

    `producers`: layers whose outputs are these channels (several behind a residual sum). `consumers`: in execution
    order. `output` marks the classes: their consumers are empty. Depthwise convolutions and batch norms of the
    channels appear in `cuts` only.
    """

    name: str
    channels: int
    cuts: tuple[Cut, ...]
    producers: tuple[str, ...]
    consumers: tuple[Consumer, ...] = ()
    output: bool = False


@dataclass(frozen=True)
class Layer:
    """Cost of one convolution or linear layer: MACs = positions × kernel × inputs × outputs (depthwise: × outputs).

    `inputs`/`outputs` are names of groups, or None where the number is fixed (image channels); `fixed_inputs` is the
    full number of input channels; `in_taps` as in `Consumer`.
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


@dataclass(frozen=True)
class ChannelGroups:
    """All groups of one network, with its cost model.

    `tensors`: shape of every state-dict tensor. `layers`: in execution order. `input_shape`: (C, H, W).
    """

    model: str
    input_shape: tuple[int, int, int]
    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    tensors: dict[str, tuple[int, ...]] = field(hash=False)

    @cached_property
    def by_name(self) -> dict[str, Group]:
        return {g.name: g for g in self.groups}

    @property
    def output(self) -> Group:
        """The group of the classes."""
        return next(g for g in self.groups if g.output)

    @property
    def prunable(self) -> tuple[Group, ...]:
        """All groups but the classes, in execution order."""
        return tuple(g for g in self.groups if not g.output)

    @property
    def classes(self) -> int:
        return self.output.channels

    def macs(self, kept: Mapping[str, int] | None = None) -> int:
        """Multiply-accumulates of one image; `kept`: channels kept by group name, absent = all."""
        return sum(self.layer_macs(layer, kept or {}) for layer in self.layers)

    def layer_macs(self, layer: Layer, kept: Mapping[str, int]) -> int:
        outputs = kept.get(layer.outputs, layer.full_outputs) if layer.outputs else layer.full_outputs
        if layer.depthwise:
            return layer.positions * layer.kernel * outputs
        inputs = kept.get(layer.inputs, layer.full_inputs) if layer.inputs else layer.full_inputs
        return layer.positions * layer.kernel * inputs * layer.in_taps * outputs

    def shapes(self, kept: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Tensor shapes after slicing to `kept` channels a group."""
        shapes = {name: list(shape) for name, shape in self.tensors.items()}
        for group in self.groups:
            removed = group.channels - kept.get(group.name, group.channels)
            for cut in group.cuts:
                shapes[cut.tensor][cut.dim] -= removed * cut.taps
        return {name: tuple(shape) for name, shape in shapes.items()}

    def parameters(self, kept: Mapping[str, int] | None = None) -> int:
        """Number of stored values (weights, biases, batch-norm statistics; counters excluded)."""
        return sum(math.prod(s) for s in self.shapes(kept or {}).values() if s)

    def file_bytes(self, kept: Mapping[str, int] | None = None) -> int:
        """Most bytes of a submodel's file: two a stored value, and `file_overhead`.

        A tensor with values beyond half precision takes twice its share (`save_state`).
        """
        return 2 * self.parameters(kept) + self.file_overhead

    @cached_property
    def file_overhead(self) -> int:
        """Most bytes of a file beside its values: names, shapes and places of the tensors, counters, any plan."""
        end = 4 * self.parameters()
        places = {name: {"dtype": "F16", "shape": s, "data_offsets": [end, end]} for name, s in self.tensors.items()}
        plan = json.dumps({group.name: list(range(group.channels)) for group in self.groups})
        header = json.dumps([places, plan, json.dumps(list(self.tensors)), self.model, self.digest])
        statistics = 64 * self.input_shape[0]  # mean and deviation of each input channel
        return len(header) + statistics + 256 + 8 * sum(not shape for shape in self.tensors.values())

    def macs_ratio(self, kept: Mapping[str, int]) -> float:
        """MACs of `kept` over those of the full model."""
        return self.macs(kept) / self.macs()

    def parameters_ratio(self, kept: Mapping[str, int]) -> float:
        """Stored values of `kept` over those of the full model."""
        return self.parameters(kept) / self.parameters()

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ChannelGroups:
        """Inverse of `to_json`. Raises ModelError on a file of another shape."""
        try:
            raw = json.loads(text)
            return cls(
                model=raw["model"],
                input_shape=tuple(raw["input_shape"]),
                groups=tuple(
                    Group(
                        name=g["name"],
                        channels=g["channels"],
                        cuts=tuple(Cut(**c) for c in g["cuts"]),
                        producers=tuple(g["producers"]),
                        consumers=tuple(Consumer(**c) for c in g["consumers"]),
                        output=g["output"],
                    )
                    for g in raw["groups"]
                ),
                layers=tuple(Layer(**layer) for layer in raw["layers"]),
                tensors={name: tuple(shape) for name, shape in raw["tensors"].items()},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"channel-group file is not readable ({error}): trace the model again") from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the description, hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
