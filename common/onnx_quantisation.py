"""Turn a program into one that computes in whole numbers of eight bits, in memory.

Weights become int8, with a scale for each output channel; values between operations become uint8, by the least and the
largest that calibration images show (Jacob et al. 2018, https://arxiv.org/abs/1712.05877). The result is in ONNX's
portable form, QuantizeLinear and DequantizeLinear around each operation, which ONNX Runtime joins when it loads it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper, shape_inference
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.registry import QDQRegistry

from fedcaptor.common.arrays import Array, Indices, evenly
from fedcaptor.common.onnx_session import Session

CALIBRATED_ON = 256  # images that ranges are measured on, at most
_BATCH = 8


def calibration_images(count: int) -> Indices:
    """Choose among `count` images those that ranges are measured on, evenly."""
    return evenly(count, CALIBRATED_ON)


def quantised(content: bytes, images: Array) -> bytes:
    """Return an .onnx file as one in eight bits.

    Args:
        content: A program in single precision with its weights, whose one input is images.
        images: What it is given [N, …], of the kind that it will meet: values beyond the ranges that these show are cut
            off.
    """
    model = ModelProto.FromString(content)
    for place, node in enumerate(model.graph.node):
        node.name = node.name or f"operation {place}"
    _join_norms(model.graph)
    model = shape_inference.infer_shapes(model)
    quantiser = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=_ranges(model, images),
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        op_types_to_quantize=list(QDQRegistry),
        extra_options={},
    )
    quantiser.quantize_model()
    made: ModelProto = quantiser.model.model
    del made.graph.value_info[:]
    del made.metadata_props[:]  # the quantiser adds notes of its own
    made.metadata_props.extend(ModelProto.FromString(content).metadata_props)
    return made.SerializeToString()


def _ranges(model: ModelProto, images: Array) -> TensorsData:
    """Measure the least and the largest of each value that operations read or make."""
    watched = ModelProto()
    watched.CopyFrom(model)
    graph, (given,) = watched.graph, watched.graph.input
    values = [given, *(v for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT), *graph.output]
    bounds = {value.name: (f"least of {value.name}", f"largest of {value.name}") for value in values}
    del graph.output[:]
    for name, pair in bounds.items():
        for operation, bound in zip(("ReduceMin", "ReduceMax"), pair, strict=True):
            graph.node.append(helper.make_node(operation, [name], [bound], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(bound, TensorProto.FLOAT, []))
    session = Session(watched, {})
    seen = [session.run({given.name: images[at : at + _BATCH]}) for at in range(0, len(images), _BATCH)]
    return TensorsData(
        CalibrationMethod.MinMax,
        {
            name: (np.stack([part[least] for part in seen]).min(0), np.stack([part[most] for part in seen]).max(0))
            for name, (least, most) in bounds.items()
        },
    )


def _join_norms(graph: GraphProto) -> None:
    """Make each batch norm a part of the convolution or linear layer before it, as runtimes do in single precision."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        layer = makers.get(norm.input[0])
        if layer is None or layer.op_type not in ("Conv", "Gemm") or uses[norm.input[0]] > 1:
            continue
        factor, shift, mean, variance = (numpy_helper.to_array(tensors[name]) for name in norm.input[1:])
        factor = factor / np.sqrt(variance + next(each.f for each in norm.attribute if each.name == "epsilon"))
        weight, *bias = (numpy_helper.to_array(tensors[name]) for name in layer.input[1:])
        joined = {
            f"{layer.name} with {norm.name}, weight": weight * factor.reshape(-1, *[1] * (weight.ndim - 1)),
            f"{layer.name} with {norm.name}, bias": (sum(bias) - mean) * factor + shift,
        }
        graph.initializer.extend(
            numpy_helper.from_array(value.astype(np.float32), name) for name, value in joined.items()
        )
        layer.input[1:], layer.output[0] = joined, norm.output[0]
        graph.node.remove(norm)
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
