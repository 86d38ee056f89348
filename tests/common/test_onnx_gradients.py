"""Each rule of the gradients of an ONNX graph gives what PyTorch's does, also at kinks and ties, on small numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import NodeProto, helper, numpy_helper
from torch.nn import functional as F

from fedcaptor.common.errors import ModelError
from fedcaptor.common.onnx_gradients import with_gradients
from fedcaptor.common.onnx_graph import COTANGENT, IMAGES, INPUTS, SCORES, effect_of, program, reaching, sensitivity_of
from fedcaptor.common.onnx_session import Session

Torch = Callable[[torch.Tensor], torch.Tensor]


def constant(name: str, value: Any, dtype: Any = np.float32) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value, dtype)))


def node(kind: str, *inputs: str, to: str = "y", **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs, [to], **attributes)


POOL = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 0, 0]}
HALF = np.full((3, 5), 0.2)

OPERATIONS: dict[str, tuple[list[NodeProto], Torch]] = {
    "relu": ([node("Relu", "x")], F.relu),
    "relu6": ([constant("low", 0), constant("high", 6), node("Clip", "x", "low", "high")], F.relu6),
    "clip above": ([constant("high", 2), node("Clip", "x", "", "high")], lambda x: x.clamp(max=2)),
    "leaky": ([node("LeakyRelu", "x", alpha=0.1)], lambda x: F.leaky_relu(x, 0.1)),
    "slopes": ([node("PRelu", "x", "slope")], lambda x: F.prelu(x, torch.tensor([0.1, 0.3]))),
    "sigmoid": ([node("Sigmoid", "x")], torch.sigmoid),
    "silu": ([node("Sigmoid", "x", to="s"), node("Mul", "x", "s")], F.silu),
    "hard sigmoid": ([node("HardSigmoid", "x", alpha=1 / 6, beta=0.5)], F.hardsigmoid),
    "hard swish": ([node("HardSwish", "x")], F.hardswish),
    "elu": ([node("Elu", "x", alpha=0.5)], lambda x: F.elu(x, 0.5)),
    "gelu": (
        [
            *(constant(name, value) for name, value in (("root", np.sqrt(2)), ("one", 1), ("half", 0.5))),
            node("Div", "x", "root", to="d"),
            node("Erf", "d", to="e"),
            node("Add", "e", "one", to="a"),
            node("Mul", "x", "a", to="m"),
            node("Mul", "m", "half"),
        ],
        F.gelu,
    ),
    "overlapping pool": ([node("MaxPool", "x", **POOL)], lambda x: F.max_pool2d(x, 3, 2)),
    "padded pool": (
        [node("MaxPool", "x", **{**POOL, "pads": [1, 1, 1, 1]})],
        lambda x: F.max_pool2d(x, 3, 2, 1),
    ),
    "last windows cut off": (
        [node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], pads=[0] * 4, ceil_mode=1)],
        lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
    ),
    "average pool": ([node("AveragePool", "x", **POOL)], lambda x: F.avg_pool2d(x, 3, 2)),
    "matrices": (
        [
            constant("rows", HALF),
            constant("columns", HALF.T),
            node("MatMul", "rows", "x", to="z"),
            node("MatMul", "z", "columns"),
        ],
        lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 3),
    ),
    "global pool": ([node("GlobalAveragePool", "x")], lambda x: x.mean((2, 3), keepdim=True)),
    "mean": (
        [constant("axes", [2, 3], np.int64), node("ReduceMean", "x", "axes", keepdims=0)],
        lambda x: x.mean((2, 3)),
    ),
    "gates of channels": (
        [node("GlobalAveragePool", "x", to="m"), node("Sigmoid", "m", to="s"), node("Mul", "x", "s")],
        lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    ),
    "sum with a smaller one": (
        [node("GlobalAveragePool", "x", to="m"), node("Add", "m", "x")],
        lambda x: x.mean((2, 3), keepdim=True) + x,
    ),
    "square": ([node("Mul", "x", "x")], lambda x: x * x),
    "concatenation": (
        [node("Relu", "x", to="r"), node("Concat", "r", "x", "r", axis=1)],
        lambda x: torch.cat([F.relu(x), x, F.relu(x)], 1),
    ),
    "transposition": ([node("Transpose", "x", perm=[0, 2, 3, 1])], lambda x: x.permute(0, 2, 3, 1)),
    "padding": (
        [constant("pads", [0, 0, 1, 2, 0, 0, 3, 0], np.int64), node("Pad", "x", "pads")],
        lambda x: F.pad(x, (2, 0, 1, 3)),
    ),
    "norm": (
        [node("BatchNormalization", "x", "scale", "shift", "mean", "variance", epsilon=1e-5)],
        lambda x: F.batch_norm(x, *(torch.from_numpy(TENSORS[key]) for key in ("mean", "variance", "scale", "shift"))),
    ),
}
TENSORS = {
    "slope": np.array([[[0.1]], [[0.3]]], np.float32),
    "mean": np.array([0.5, -1], np.float32),
    "variance": np.array([2, 4], np.float32),
    "scale": np.array([1.5, -2], np.float32),
    "shift": np.array([0.1, 0.3], np.float32),
}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_gradient_is_that_of_torch(name: str, stride: int) -> None:
    """Whole numbers: half of what a rectifier or pool meets is at a bound or in a tie."""
    operations, function = OPERATIONS[name]
    rng, size = np.random.default_rng(0), 5 * stride
    x = rng.integers(-2, 3, (3, 2, size, size)).astype(np.float32)
    weight = rng.integers(-1, 2, (2, 2, 3, 3)).astype(np.float32)

    images = torch.from_numpy(x).requires_grad_()
    maps = F.conv2d(images, torch.from_numpy(weight), stride=stride, padding=1)
    result = function(maps).flatten(1)
    last = rng.standard_normal((4, result.shape[1])).astype(np.float32)
    cotangent = rng.standard_normal((3, 4)).astype(np.float32)
    loss = (result @ torch.from_numpy(last).T * torch.from_numpy(cotangent)).sum()
    of_maps, of_images = torch.autograd.grad(loss, [maps, images])
    rows = of_maps.movedim(1, 0).flatten(1)

    geometry = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [stride] * 2, "dilations": [1, 1], "group": 1}
    forward = [
        *(each for each in operations if each.op_type == "Constant"),
        node("Conv", IMAGES, "conv.weight", to="x", **geometry),
        *(each for each in operations if each.op_type != "Constant"),
        node("Flatten", "y", to="flat"),
        node("Gemm", "flat", "fc.weight", to=SCORES, transB=1),
    ]
    tensors = {**TENSORS, "conv.weight": weight, "fc.weight": last}
    results = [name for each in forward for name in each.output if each.op_type != "Constant"]
    given = {IMAGES: x, COTANGENT: cotangent}
    seen = Session(program(forward, [IMAGES], results, tensors), tensors).run(given)
    fixed = {
        each.output[0]: numpy_helper.to_array(each.attribute[0].t) for each in forward if each.op_type == "Constant"
    }
    shapes = {key: value.shape for key, value in {**fixed, **given, **tensors, **seen}.items()}
    nodes = with_gradients(forward, ["conv", "fc"], shapes, "it")
    wanted = [effect_of("conv"), sensitivity_of("conv")]
    found = Session(program(reaching(nodes, INPUTS, wanted), INPUTS, wanted, tensors), tensors).run(given)
    np.testing.assert_allclose(found[wanted[0]], (images * of_images).sum((2, 3)).detach(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[wanted[1]], rows @ rows.T, rtol=1e-4, atol=1e-4)


def test_an_operation_without_a_rule_is_named() -> None:
    forward = [
        node("Conv", IMAGES, "conv.weight", to="x"),
        node("Tan", "x", to="y"),
        node("Gemm", "y", "fc.weight", to=SCORES, transB=1),
    ]
    with pytest.raises(ModelError, match=r"mine has an operation Tan, .* take the server's scores"):
        with_gradients(forward, ["conv"], {}, "mine")
