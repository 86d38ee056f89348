"""A network of a phone: a graph, the weights that it has, and what it computes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper

from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.groups import State
from fedcaptor.common.onnx_graph import IMAGES, INPUTS, SCORES, NetworkGraph, embedded, program, reaching
from fedcaptor.common.onnx_session import Session, Values, in_batches

BATCH = 16
"""Images of one run: memory grows with them, results stay and little time is saved."""
PIXELS = "pixels"  # what a complete program takes: float [N, C, H, W] in [0, 1]

Visit = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32] | None]
"""Is given what a layer reads [N, …], gives what it shall read instead; None leaves it as it is."""


@dataclass(frozen=True, eq=False)
class Underway:
    """Hold images on their way through a network: what its operations from number `place` on read of them."""

    place: int
    values: Values

    @classmethod
    def of(cls, x: npt.NDArray[np.float32]) -> Underway:
        """Start with normalised images [N, C, H, W]."""
        return cls(0, {IMAGES: x})


@dataclass(frozen=True, eq=False)
class Network:
    """Hold a graph with weights that fit it: the full network, or one that keeps a part of its channels.

    Attributes:
        graph: The full network's operations.
        state: Weights by name.
        mean: Of each input channel, of images in [0, 1].
        std: Of each input channel, of images in [0, 1].
        batch: Images of one run.
    """

    graph: NetworkGraph
    state: State
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch: int = BATCH

    def with_state(self, state: State) -> Network:
        """Return the network with other weights."""
        return replace(self, state=state)

    def normalise(self, images: Images) -> npt.NDArray[np.float32]:
        """Turn images [N, H, W, C] into what the graph takes [N, C, H, W]; floats are normalised already."""
        x = np.asarray(images).transpose(0, 3, 1, 2)
        if not np.issubdtype(x.dtype, np.floating):
            shift, scale = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
            x = (x.astype(np.float32) / np.float32(255) - shift) / scale
        return np.ascontiguousarray(x, np.float32)

    @cached_property
    def fitted(self) -> NetworkGraph:
        """Return the graph for these weights."""
        return self.graph.fitted(self.state)

    def session(self, *outputs: str) -> Session:
        """Prepare to compute values of the graph from images, and from a cotangent where they depend on one."""
        return Session(self.fitted.program(INPUTS, outputs, self.state), self.state)

    @cached_property
    def _scores(self) -> Session:
        return self.session(SCORES)

    def scores(self, images: Images) -> npt.NDArray[np.float32]:
        """Compute logits [N, classes] of uint8 images [N, H, W, C]; N is at least 1."""
        return in_batches(self._scores, {IMAGES: self.normalise(images)}, self.batch)[SCORES]

    def program(self, labels: Indices) -> bytes:
        """Return an .onnx file that maps float images [N, C, H, W] in [0, 1] to scores [N, classes].

        Its metadata have the `labels` [classes] of the scores, as JSON.
        """
        statistics = {
            name: np.array(values, np.float32).reshape(-1, 1, 1)
            for name, values in (("images mean", self.mean), ("images std", self.std))
        }
        first = [
            helper.make_node("Sub", [PIXELS, "images mean"], ["images shifted"]),
            helper.make_node("Div", ["images shifted", "images std"], [IMAGES]),
        ]
        tensors = {**self.state, **statistics}
        complete = program([*first, *self.fitted.forward], [PIXELS], [SCORES], tensors)
        shape: list[str | int | None] = ["N", *self.graph.groups.input_shape]
        complete.graph.input[0].CopyFrom(helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, shape))
        helper.set_model_props(complete, {"labels": json.dumps(labels.tolist())})
        return embedded(complete, tensors)

    def visit(self, way: Underway, visits: Mapping[str, Visit]) -> npt.NDArray[np.float32]:
        """Run images through the rest of the network, with a stop before each of some layers.

        Layers behind a stop use the weights that the state has then: a visit may change those of its layer and of the
        layers that follow it. Returns scores [N, classes].
        """
        nodes, begin, values = list(self.fitted.forward), way.place, dict(way.values)
        stops = {self.fitted.position(layer): layer for layer in visits}
        for end in sorted(stops):
            values = self._advance(nodes, begin, end, values)
            begin, layer, reader = end, stops[end], nodes[end]
            given = visits[layer](values[reader.input[0]])
            if given is not None:
                values[f"{layer} input"] = given
                nodes[end] = _reading(reader, f"{layer} input")
        return self._advance(nodes, begin, len(nodes), values)[SCORES]

    def moved(self, way: Underway, place: int) -> Underway:
        """Run images on, to the operation of number `place`."""
        return Underway(place, self._advance(list(self.fitted.forward), way.place, place, dict(way.values)))

    def _advance(self, nodes: list[NodeProto], begin: int, end: int, values: Values) -> Values:
        """Execute nodes `begin` to `end`; of the values keep those that nodes behind them read."""
        later = {name for node in nodes[end:] for name in node.input} | {SCORES}
        constants = [node for node in nodes if node.op_type == "Constant"]
        own = [node for node in nodes[begin:end] if node.op_type != "Constant"]
        made = [name for node in own for name in node.output if name in later]
        kept = {name: value for name, value in values.items() if name in later}
        if made:
            segment = program(reaching([*constants, *own], values, made), list(values), made, self.state)
            read = {value.name for value in segment.graph.input}
            given = {name: value for name, value in values.items() if name in read}
            kept |= in_batches(Session(segment, self.state), given, self.batch)
        return kept


def _reading(node: NodeProto, name: str) -> NodeProto:
    """Copy an operation with another first input."""
    changed = NodeProto()
    changed.CopyFrom(node)
    changed.input[0] = name
    return changed
