"""A network and its gradients as an ONNX graph without weights: of it a phone makes each program that it runs.

The graph names a network's tensors as its state does, and knows no number of channels. So one graph serves any weights
of an architecture, and, with slices of them, any submodel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, TensorProto, helper

from fedcaptor.common.arrays import Array
from fedcaptor.common.errors import ModelError
from fedcaptor.common.files import no_file, write_whole
from fedcaptor.common.groups import ChannelGroups, State
from fedcaptor.common.observations import consuming_layers
from fedcaptor.common.weights_file import narrow

IMAGES = "images"  # normalised, float [N, C, H, W]
SCORES = "scores"  # logits [N, classes]
COTANGENT = "cotangent"  # ∂ loss / ∂ logits [N, classes]
INPUTS = (IMAGES, COTANGENT)

_GROUPS = "fedcaptor.groups"  # metadata key
_OPSET, _IR = 20, 10  # what ONNX Runtime 1.17 and later read


def effect_of(layer: str) -> str:
    """Name Σ a · ∂ loss / ∂ a over map positions, [N, elements], of what a layer reads, through this layer alone."""
    return f"{layer} effect"


def sensitivity_of(layer: str) -> str:
    """Name Σ g·gᵀ [O, O] over images and map positions, with g = ∂ loss / ∂ output of a layer."""
    return f"{layer} sensitivity"


@dataclass(frozen=True, eq=False)
class NetworkGraph:
    """Hold a network's channel groups and its operations, forward and backward.

    Attributes:
        groups: Channel groups of the full network.
        nodes: Operations in an order in which they can be executed. Inputs are `IMAGES`, `COTANGENT` and tensors of the
            state; results are `SCORES`, and of each consuming layer `effect_of` and `sensitivity_of` it.
    """

    groups: ChannelGroups
    nodes: tuple[NodeProto, ...]

    @classmethod
    def load(cls, path: Path) -> NetworkGraph:
        """Read a file of `save`. Raises ModelError when there is none, or it is something else."""
        if (problem := no_file(path)) is not None:
            raise ModelError(problem)
        try:
            model = onnx.load_model_from_string(path.read_bytes())
            text = next(entry.value for entry in model.metadata_props if entry.key == _GROUPS)
        except (DecodeError, StopIteration) as error:
            raise ModelError(f"{path} is no graph of a network: export it with `fedcaptor export-graph`") from error
        return cls(ChannelGroups.from_json(text), tuple(model.graph.node))

    def save(self, path: Path) -> None:
        """Write the graph atomically, as ONNX with the channel groups in its metadata."""
        model = self.program(INPUTS, self.results, {})
        helper.set_model_props(model, {_GROUPS: self.groups.to_json()})
        write_whole(path, model.SerializeToString())

    @property
    def results(self) -> list[str]:
        """Name all that the graph computes."""
        layers = consuming_layers(self.groups)
        return [SCORES, *map(effect_of, layers), *map(sensitivity_of, layers)]

    @cached_property
    def forward(self) -> tuple[NodeProto, ...]:
        """Return the operations that lead from the images to the scores."""
        return tuple(reaching(self.nodes, {IMAGES}, [SCORES]))

    def position(self, layer: str) -> int:
        """Return the place among `forward` of the operation that multiplies with a layer's weights."""
        weight = f"{layer}.weight"
        return next(place for place, node in enumerate(self.forward) if weight in node.input)

    def reader(self, layer: str) -> NodeProto:
        """Return the operation that multiplies with a layer's weights."""
        return self.forward[self.position(layer)]

    def fitted(self, tensors: Mapping[str, Array]) -> NetworkGraph:
        """Return the graph for slices of the network's tensors: their grouped convolutions have fewer groups."""
        return replace(self, nodes=tuple(self._fitted(node, tensors) for node in self.nodes))

    def _fitted(self, node: NodeProto, tensors: Mapping[str, Array]) -> NodeProto:
        group = next((each for each in node.attribute if each.name == "group" and each.i > 1), None)
        if group is None:
            return node
        full, own = self.groups.tensors[node.input[1]][0], len(tensors[node.input[1]])
        if full == own:
            return node
        changed = NodeProto()
        changed.CopyFrom(node)
        next(each for each in changed.attribute if each.name == "group").i = group.i * own // full
        return changed

    def program(self, inputs: Collection[str], outputs: Sequence[str], tensors: Mapping[str, Array]) -> ModelProto:
        """Make the program from some values of the graph to others, see `program`."""
        return program(reaching(self.nodes, inputs, outputs), inputs, outputs, tensors)


def reaching(nodes: Sequence[NodeProto], inputs: Collection[str], outputs: Iterable[str]) -> list[NodeProto]:
    """List the operations, in order, that lead from `inputs`, which are given, to `outputs`."""
    needed, found = set(outputs).difference(inputs), []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            found.append(node)
            needed = (needed | set(node.input)).difference(inputs)
    return found[::-1]


def program(
    nodes: Sequence[NodeProto], inputs: Collection[str], outputs: Sequence[str], tensors: Mapping[str, Array]
) -> ModelProto:
    """Make a program of operations.

    Args:
        nodes: In an order in which they can be executed.
        inputs: Values that are given, float of any shape; those that no operation reads are left out.
        outputs: Values that are asked for.
        tensors: Weights; those that the operations read are inputs too.
    """
    read = {name for node in nodes for name in node.input}
    shapes = {**dict.fromkeys(inputs), **{name: tensor.shape for name, tensor in tensors.items()}}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in shapes if name in read],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


def embedded(model: ModelProto, tensors: State) -> bytes:
    """Return a program as the content of an .onnx file that has its weights."""
    given = [value for value in model.graph.input if value.name not in tensors]
    weights = [value.name for value in model.graph.input if value.name in tensors]
    del model.graph.input[:]
    model.graph.input.extend(given)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.ascontiguousarray(tensors[name]), name) for name in weights
    )
    return model.SerializeToString()


def with_half_weights(content: bytes) -> bytes:
    """Return an .onnx file that has its weights in half precision, as files of weights do: half of the bytes.

    It computes in single precision all the same: runtimes widen the weights once, when they load it.
    """
    model, widened = ModelProto.FromString(content), []
    for tensor in model.graph.initializer:
        half, name = narrow(onnx.numpy_helper.to_array(tensor)), tensor.name
        if half.dtype == np.float16:
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name} half"))
            widened.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*widened, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString()
