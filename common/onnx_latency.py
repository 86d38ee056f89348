"""Make the programs that a latency table is measured with on a device: each layer at each point of the table's grid.

They have no weights, only their shapes: ONNX Runtime fills weights in when it loads a program. So a network's programs
take some hundred kilobytes, and time does not depend on what the weights are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from onnx import ModelProto, NodeProto, TensorProto, helper, shape_inference

from fedcaptor.common.costs import layer_lengths, measured_counts
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.latency_programs import LatencyPrograms, LayerPrograms
from fedcaptor.common.onnx_graph import IMAGES, SCORES, NetworkGraph, program

Shape = tuple[int, ...]

_NETWORK, _NOTHING = "network.onnx", "nothing.onnx"


def latency_programs(graph: NetworkGraph, multiple: int) -> LatencyPrograms:
    """Make the programs of a network's latency table, whose channel counts are multiples of `multiple`.

    Each is a layer as it stands in the graph, on a map of the size that it has there. Channel counts are those of
    `fedcaptor.common.torch_engine.latency.measure_table`.
    """
    groups, contents, layers = graph.groups, dict[str, bytes](), dict[str, LayerPrograms]()
    full = {name: shape for name, shape in groups.tensors.items() if shape}
    shapes = _map_shapes(graph, full)
    positions = {layer.name: layer.positions for layer in groups.layers}
    contents[_NETWORK] = _program(graph.forward, {IMAGES: (1, *groups.input_shape)}, SCORES, full)
    contents[_NOTHING] = _program([helper.make_node("Identity", ["x"], ["y"])], {"x": (1, 1)}, "y", {})
    for number, (name, (inputs, outputs)) in enumerate(layer_lengths(groups).items()):
        rows, columns = (measured_counts(length, groups, multiple) for length in (inputs, outputs))
        names = tuple(tuple(f"{number}-{i}-{j}.onnx" for j in columns) for i in rows)
        node = graph.reader(name)
        for i, own in zip(rows, names, strict=True):
            for j, file in zip(columns, own, strict=True):
                contents[file] = _layer(node, groups, shapes[node.input[0]], i, j)
        layers[name] = LayerPrograms(rows, columns, names, positions[name])
    return LatencyPrograms(groups.model, groups.input_shape, groups.digest, layers, _NETWORK, _NOTHING, contents)


def _layer(node: NodeProto, groups: ChannelGroups, reads: Shape, inputs: int, outputs: int) -> bytes:
    """Make the program of a layer with so many inputs and outputs, which reads a map of the shape `reads`."""
    weight = groups.tensors[node.input[1]]
    of_convolution = next((each.i for each in node.attribute if each.name == "group"), 1)
    if of_convolution > 1:  # a filter's inputs stay, there are fewer filters
        of_convolution = of_convolution * outputs // weight[0]
        tensors = {node.input[1]: (outputs, *weight[1:])}
        given = (1, of_convolution * weight[1], *reads[2:])
    else:
        tensors = {node.input[1]: (outputs, inputs, *weight[2:])}
        given = (1, inputs, *reads[2:])
    tensors |= {name: (outputs,) for name in node.input[2:]}
    own = NodeProto()
    own.CopyFrom(node)
    for attribute in own.attribute:
        if attribute.name == "group":
            attribute.i = of_convolution
    return _program([own], {node.input[0]: given}, node.output[0], tensors)


def _program(
    nodes: Sequence[NodeProto], given: Mapping[str, Shape], output: str, tensors: Mapping[str, Shape]
) -> bytes:
    """Make a program of operations, whose tensors are filled with constants when it is loaded."""
    read = {name for node in nodes for name in node.input}
    made, initializers = list[NodeProto](), []
    for name, shape in tensors.items():
        if name in read:
            size = f"{name} shape"
            value = 1 / max(math.prod(shape[1:]), 1)  # so that sums stay near their terms: no infinite, no tiny numbers
            initializers.append(helper.make_tensor(size, TensorProto.INT64, [len(shape)], shape))
            fill = helper.make_tensor("value", TensorProto.FLOAT, [1], [value])
            made.append(helper.make_node("ConstantOfShape", [size], [name], value=fill))
    model = program([*made, *nodes], given, [output], {})
    for value in model.graph.input:
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, given[value.name]))
    model.graph.initializer.extend(initializers)
    return model.SerializeToString()


def _map_shapes(graph: NetworkGraph, tensors: Mapping[str, Shape]) -> dict[str, Shape]:
    """Find the shapes of all maps of one image."""
    content = _program(graph.forward, {IMAGES: (1, *graph.groups.input_shape)}, SCORES, tensors)
    inferred = shape_inference.infer_shapes(ModelProto.FromString(content), data_prop=True).graph
    return {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in (*inferred.input, *inferred.value_info)
    }
