"""Differentiate an ONNX graph: operations that compute gradients, for any number of channels.

What is differentiated is the loss whose derivative with respect to the scores, `COTANGENT`, is given. Rules follow
PyTorch where a function has a kink: a rectifier passes nothing at its bounds, a pool's gradient goes to the first of
several largest elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from fedcaptor.common.errors import ModelError
from fedcaptor.common.onnx_graph import COTANGENT, SCORES, effect_of, sensitivity_of

Shapes = Mapping[str, Sequence[int]]
"""Shapes of values for some number of images: only maps' sizes matter, and which dimensions are one."""


def with_gradients(
    forward: Sequence[NodeProto], layers: Sequence[str], shapes: Shapes, model: str
) -> tuple[NodeProto, ...]:
    """Extend a network's operations by what computes `effect_of` and `sensitivity_of` each of some layers.

    Args:
        forward: The operations from images to scores, in order.
        layers: Names of convolutions and linear layers.
        shapes: Shapes of images, of all results and of the weights.
        model: What the network is called, in errors.

    Raises:
        ModelError: An operation has no rule.
    """
    writer = _Writer(list(forward), shapes)
    readers = {f"{layer}.weight": layer for layer in layers}
    first = min(place for place, node in enumerate(forward) if _weight(node) in readers)
    gradients = {SCORES: COTANGENT}
    for place in range(len(forward) - 1, first - 1, -1):
        node = forward[place]
        gradient = gradients.pop(node.output[0], None)
        if gradient is None:
            continue
        rule = _RULES.get(node.op_type)
        if rule is None:
            raise ModelError(
                f"{model} has an operation {node.op_type}, for which no gradient is known: its phones need torch, or "
                "take the server's scores"
            )
        passed = rule(writer, node, gradient)
        layer = readers.get(_weight(node))
        if layer is not None:
            writer.observe(layer, node, gradient, passed[node.input[0]])
        for name, part in passed.items():
            gradients[name] = part if name not in gradients else writer.add("Add", [gradients[name], part])
    return tuple(writer.nodes)


def _weight(node: NodeProto) -> str:
    return node.input[1] if node.op_type in ("Conv", "Gemm") else ""


class _Writer:
    """Append operations to a graph, with names of their own."""

    def __init__(self, nodes: list[NodeProto], shapes: Shapes) -> None:
        self.nodes, self.shapes = nodes, shapes
        self.constants = {
            node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in nodes if node.op_type == "Constant"
        }

    def add(self, kind: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        """Append an operation; returns the name of its result."""
        name = name or f"gradient {len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Append a constant."""
        return self.add("Constant", [], value=numpy_helper.from_array(np.asarray(value, dtype)))

    def like(self, value: str, of: str) -> str:
        """Give a value another one's shape."""
        return self.add("Reshape", [value, self.add("Shape", [of])])

    def where(self, condition: str, gradient: str) -> str:
        """Pass the gradient where a condition holds, zero elsewhere."""
        return self.add("Where", [condition, gradient, self.constant(0, np.float32)])

    def summed(self, gradient: str, value: str, result: str) -> str:
        """Sum a result's gradient over the dimensions in which a value was repeated to its shape."""
        own, full = self.shapes[value], self.shapes[result]
        missing = len(full) - len(own)
        axes = [axis for axis, size in enumerate(full) if axis < missing or own[axis - missing] != size]
        if axes:
            gradient = self.add("ReduceSum", [gradient, self.constant(axes)], keepdims=1)
        return self.like(gradient, value) if missing else gradient

    def observe(self, layer: str, node: NodeProto, gradient: str, passed: str) -> None:
        """Write what is asked of a layer: `gradient` is that of its output, `passed` that of its input."""
        product = self.add("Mul", [node.input[0], passed])
        axes = list(range(2, len(self.shapes[node.input[0]])))
        effect = self.add("ReduceSum", [product, self.constant(axes)], keepdims=0) if axes else product
        self.add("Identity", [effect], effect_of(layer))
        rest = list(range(1, len(self.shapes[node.output[0]])))
        first = self.add("Transpose", [gradient], perm=[1, 0, *rest[1:]])
        rows = self.add("Reshape", [first, self.constant([0, -1])])
        self.add("Gemm", [rows, rows], sensitivity_of(layer), transB=1)


Rule = Callable[[_Writer, NodeProto, str], dict[str, str]]
"""Takes an operation and its result's gradient, gives the gradients of those of its inputs that depend on images."""


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _convolution(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    own = _attributes(node)
    geometry = {key: own[key] for key in ("strides", "pads", "dilations", "group", "kernel_shape") if key in own}
    sizes, pads = writer.shapes[node.input[0]][2:], own["pads"]
    left = [
        (size + before + after - step * (kernel - 1) - 1) % stride
        for size, before, after, step, kernel, stride in zip(
            sizes,
            pads[: len(sizes)],
            pads[len(sizes) :],
            own["dilations"],
            own["kernel_shape"],
            own["strides"],
            strict=True,
        )
    ]
    return {node.input[0]: writer.add("ConvTranspose", [gradient, node.input[1]], output_padding=left, **geometry)}


def _linear(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    return {node.input[0]: writer.add("Gemm", [gradient, node.input[1]])}


def _matrix_product(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    first, second = node.input
    if first in writer.constants:
        return {second: writer.add("MatMul", [writer.constant(writer.constants[first].T, np.float32), gradient])}
    if second in writer.constants:
        return {first: writer.add("MatMul", [gradient, writer.constant(writer.constants[second].T, np.float32)])}
    raise ModelError("a product of two matrices that both depend on images has no known gradient")


def _batch_norm(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    x, weight, _bias, _mean, variance = node.input
    floor = writer.constant(_attributes(node)["epsilon"], np.float32)
    scale = writer.add("Div", [weight, writer.add("Sqrt", [writer.add("Add", [variance, floor])])])
    axes = list(range(1, len(writer.shapes[x]) - 1))
    scale = writer.add("Unsqueeze", [scale, writer.constant(axes)]) if axes else scale
    return {x: writer.add("Mul", [gradient, scale])}


def _rectifier(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    open_ = writer.add("Greater", [node.output[0], writer.constant(0, np.float32)])
    return {node.input[0]: writer.where(open_, gradient)}


def _clip(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    x, low, high = [*node.input, "", ""][:3]
    for bound, kind in ((low, "Greater"), (high, "Less")):
        if bound:
            gradient = writer.where(writer.add(kind, [x, bound]), gradient)
    return {x: gradient}


def _leaky(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    slope = node.input[1] if node.op_type == "PRelu" else writer.constant(_attributes(node)["alpha"], np.float32)
    closed = writer.add("Mul", [gradient, slope])
    positive = writer.add("Greater", [node.input[0], writer.constant(0, np.float32)])
    return {node.input[0]: writer.add("Where", [positive, gradient, closed])}


def _sigmoid(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    y, one = node.output[0], writer.constant(1, np.float32)
    slope = writer.add("Mul", [y, writer.add("Sub", [one, y])])
    return {node.input[0]: writer.add("Mul", [gradient, slope])}


def _hard_sigmoid(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    y = node.output[0]
    for bound, kind in ((0, "Greater"), (1, "Less")):
        gradient = writer.where(writer.add(kind, [y, writer.constant(bound, np.float32)]), gradient)
    return {node.input[0]: writer.add("Mul", [gradient, writer.constant(_attributes(node)["alpha"], np.float32)])}


def _hard_swish(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    x = node.input[0]
    constant = [writer.constant(value, np.float32) for value in (-3, 3, 1 / 3, 0.5)]
    slope = writer.add("Add", [writer.add("Mul", [x, constant[2]]), constant[3]])
    middle = writer.add("Mul", [gradient, slope])
    upper = writer.add("Where", [writer.add("Less", [x, constant[1]]), middle, gradient])
    return {x: writer.where(writer.add("Greater", [x, constant[0]]), upper)}


def _elu(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    x, y = node.input[0], node.output[0]
    alpha = writer.constant(_attributes(node).get("alpha", 1.0), np.float32)
    below = writer.add("Mul", [gradient, writer.add("Add", [y, alpha])])
    return {x: writer.add("Where", [writer.add("Greater", [x, writer.constant(0, np.float32)]), gradient, below])}


def _erf(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    x = node.input[0]
    bell = writer.add("Exp", [writer.add("Neg", [writer.add("Mul", [x, x])])])
    slope = writer.add("Mul", [bell, writer.constant(2 / np.sqrt(np.pi), np.float32)])
    return {x: writer.add("Mul", [gradient, slope])}


def _quotient(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    x, divisor = node.input
    if divisor not in writer.constants:
        raise ModelError("a division by what depends on images has no known gradient")
    return {x: writer.summed(writer.add("Div", [gradient, divisor]), x, node.output[0])}


def _max_pool(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    x = node.input[0]
    pooled, places = (f"gradient {len(writer.nodes)} {part}" for part in ("pooled", "places"))
    writer.nodes.append(helper.make_node("MaxPool", [x], [pooled, places], **_attributes(node)))
    flat = writer.constant([-1])
    size = writer.add("Reshape", [writer.add("Size", [x]), flat])
    zeros = writer.add("ConstantOfShape", [size])
    rows = [writer.add("Reshape", [value, flat]) for value in (places, gradient)]
    scattered = writer.add("ScatterElements", [zeros, *rows], axis=0, reduction="add")
    return {x: writer.like(scattered, x)}


def _average_pool(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    own, x = _attributes(node), node.input[0]
    kernel, maps = own["kernel_shape"], writer.shapes[node.output[0]][2:]
    if own.get("ceil_mode") or (any(own["pads"]) and not own.get("count_include_pad")):
        raise ModelError("an average pool has windows of several sizes: leave out ceil_mode and padding")
    sizes = writer.shapes[x][2:]
    geometry = {"strides": own["strides"], "pads": own["pads"], "kernel_shape": kernel}
    pads = own["pads"]
    left = [(size + pads[i] + pads[i + len(sizes)] - kernel[i]) % own["strides"][i] for i, size in enumerate(sizes)]
    weight = writer.constant(np.full((1, 1, *kernel), 1 / np.prod(kernel)), np.float32)
    each = writer.add("Reshape", [gradient, writer.constant([-1, 1, *maps])])
    spread = writer.add("ConvTranspose", [each, weight], output_padding=left, **geometry)
    return {x: writer.like(spread, x)}


def _mean(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    x, y = node.input[0], node.output[0]
    if node.op_type == "ReduceMean" and not _attributes(node).get("keepdims", 1):
        gradient = writer.add("Unsqueeze", [gradient, node.input[1]])
    sizes = [writer.add("Cast", [writer.add("Size", [value])], to=1) for value in (y, x)]
    shared = writer.add("Mul", [gradient, writer.add("Div", sizes)])
    return {x: writer.add("Expand", [shared, writer.add("Shape", [x])])}


def _reshaped(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    return {node.input[0]: writer.like(gradient, node.input[0])}


def _padded(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    pads = writer.constants.get(node.input[1])
    if pads is None or _attributes(node).get("mode", b"constant") != b"constant":
        raise ModelError("a padding that is not of a constant width and value has no known gradient")
    return {node.input[0]: writer.add("Pad", [gradient, writer.constant(-pads)])}


def _transposed(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    back = [int(axis) for axis in np.argsort(_attributes(node)["perm"])]
    return {node.input[0]: writer.add("Transpose", [gradient], perm=back)}


def _concatenated(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    axis = _attributes(node)["axis"] % len(writer.shapes[node.output[0]])
    sizes = [writer.add("Shape", [name], start=axis, end=axis + 1) for name in node.input]
    parts = [f"gradient {len(writer.nodes)} part {place}" for place in range(len(sizes))]
    split = writer.add("Concat", sizes, axis=0)
    writer.nodes.append(helper.make_node("Split", [gradient, split], parts, axis=axis))
    return _added_up(writer, zip(node.input, parts, strict=True))


def _sum(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    return _added_up(writer, ((name, writer.summed(gradient, name, node.output[0])) for name in node.input))


def _product(writer: _Writer, node: NodeProto, gradient: str) -> dict[str, str]:
    first, second = node.input
    found = []
    for name, other in ((first, second), (second, first)):
        found.append((name, writer.summed(writer.add("Mul", [gradient, other]), name, node.output[0])))
    return _added_up(writer, found)


def _added_up(writer: _Writer, parts: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Add up the gradients of each value that is given more than once."""
    found: dict[str, str] = {}
    for name, part in parts:
        found[name] = part if name not in found else writer.add("Add", [found[name], part])
    return found


_RULES: dict[str, Rule] = {
    "Add": _sum,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concatenated,
    "Conv": _convolution,
    "Div": _quotient,
    "Elu": _elu,
    "Erf": _erf,
    "Flatten": _reshaped,
    "Gemm": _linear,
    "GlobalAveragePool": _mean,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Identity": lambda writer, node, gradient: {node.input[0]: gradient},
    "LeakyRelu": _leaky,
    "MaxPool": _max_pool,
    "MatMul": _matrix_product,
    "Mul": _product,
    "PRelu": _leaky,
    "Pad": _padded,
    "ReduceMean": _mean,
    "Relu": _rectifier,
    "Reshape": _reshaped,
    "Sigmoid": _sigmoid,
    "Squeeze": _reshaped,
    "Transpose": _transposed,
    "Unsqueeze": _reshaped,
}
