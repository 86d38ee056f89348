"""Export a network with its gradients as an ONNX graph, once for an architecture, for phones without torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from fedcaptor.common.arrays import Array
from fedcaptor.common.errors import ModelError
from fedcaptor.common.groups import ChannelGroups, State
from fedcaptor.common.observations import consumers, consuming_layers, of_channels
from fedcaptor.common.onnx_gradients import with_gradients
from fedcaptor.common.onnx_graph import (
    COTANGENT,
    IMAGES,
    INPUTS,
    SCORES,
    NetworkGraph,
    effect_of,
    reaching,
    sensitivity_of,
)
from fedcaptor.common.onnx_session import Session
from fedcaptor.common.plan import Plan
from fedcaptor.common.slicer import slice_state
from fedcaptor.common.subgroups import subgroups
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.evidence import gradient_matrices, hooks
from fedcaptor.common.torch_engine.scores import gate_hook

TOLERANCE = 1e-4  # of the scores' length: by what an exported network's may differ
GRADIENTS = 0.05  # of the gradients' length: rounding takes some value over a rectifier's kink
_TRIED_ON = 3  # images


def network_graph(base: BaseModel) -> NetworkGraph:
    """Export a base model's network, without its weights.

    What the graph computes is compared with the network, full and sliced. Raises ModelError when an operation has no
    known gradient, or the two differ: phones then need torch, or take the server's scores.
    """
    groups, name = base.groups, base.name
    try:
        forward = _cleaned(_exported(base.module, groups.input_shape), base.state)
        graph = NetworkGraph(groups, tuple(forward))
        shapes = _shapes(graph, base.state)
        missing = [layer for layer in consuming_layers(groups) if not _is_read(layer, forward)]
        if missing:
            raise ModelError(f"{name}: layer {missing[0]} is no plain convolution or linear layer of vectors in ONNX")
        graph = NetworkGraph(groups, with_gradients(forward, consuming_layers(groups), shapes, name))
        _compare(graph, base, Plan.of(groups, {}))
        _compare(graph, base, Plan.of(groups, {g.name: np.arange(0, g.channels, 2) for g in groups.prunable}))
    except ModelError:
        raise
    except Exception as error:  # exporters raise errors of many kinds, with texts of many lines
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"{name} cannot become an ONNX graph ({reason}): its phones need torch, or take the server's scores"
        ) from error
    return graph


def _exported(module: nn.Module, input_shape: tuple[int, int, int]) -> onnx.GraphProto:
    """Let torch export the operations, with the shapes of their results."""
    made = torch.onnx.export(
        _with_plain_pools(module, input_shape),
        (torch.zeros(2, *input_shape),),
        input_names=[IMAGES],
        output_names=[SCORES],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        dynamo=True,
        optimize=False,  # it would join and rename weights
        verbose=False,
    )
    assert made is not None  # as it is without `dynamo`
    return made.model_proto.graph


class _Average(nn.Module):
    """Average maps by products with matrices, as an adaptive pool does whose windows differ in size."""

    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(self, rows: torch.Tensor, columns: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] to [N, C, H', W']."""
        return self.rows @ x @ self.columns


def _with_plain_pools(module: nn.Module, input_shape: tuple[int, int, int]) -> nn.Module:
    """Copy a network, with adaptive pools written for its images: the exporter writes them by many operations."""
    module, pools = copy.deepcopy(module), dict[str, nn.Module]()

    def watch(name: str) -> Callable[..., None]:
        def hook(pool: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            rows, columns = (
                nn.functional.adaptive_avg_pool1d(torch.eye(size), made).T
                for size, made in zip(inputs[0].shape[2:], output.shape[2:], strict=True)
            )
            if output[0, 0].numel() > 1:
                pools[name] = _Average(rows, columns.T)

        return hook

    found = {name: each for name, each in module.named_modules() if isinstance(each, nn.AdaptiveAvgPool2d)}
    with hooks([pool.register_forward_hook(watch(name)) for name, pool in found.items()]), torch.no_grad():
        module(torch.zeros(1, *input_shape))
    for name, pool in pools.items():
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, pool)
    return module


def _cleaned(graph: onnx.GraphProto, state: State) -> list[NodeProto]:
    """Remove what ties the operations to the number of channels, and what computes constants.

    A flattening is no longer written with its length, and a convolution without bias has none.
    """
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer if each.name not in state}
    shapes = {
        value.name: [each.dim_value for each in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    same: dict[str, str] = {}
    kept = []
    for given in graph.node:
        node = NodeProto()
        node.CopyFrom(given)
        del node.metadata_props[:]
        node.name = node.doc_string = ""
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type == "CastLike" and node.input[0] in constants:  # all that depends on images is of one type
            constants[node.output[0]] = constants[node.input[0]].astype(np.float32)
        elif node.op_type == "CastLike":
            same[node.output[0]] = node.input[0]
        elif all(name in constants for name in node.input):
            constants[node.output[0]] = _evaluated(node, constants)
        else:
            if node.op_type == "Conv" and len(node.input) > 2 and node.input[2] not in state:
                del node.input[2:]
            if node.op_type == "Reshape" and node.input[1] not in constants:
                node = _flattened(node, shapes[node.output[0]], constants)
            kept.append(node)
    tensors = {name: numpy_helper.from_array(value) for name, value in constants.items()}
    made = [helper.make_node("Constant", [], [name], value=tensor) for name, tensor in tensors.items()]
    return reaching([*made, *kept], {IMAGES}, [SCORES])


def _evaluated(node: NodeProto, constants: Mapping[str, Array]) -> Array:
    """Compute an operation on constants."""
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in node.input if name]
    output = helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UNDEFINED, None)
    model = helper.make_model(
        helper.make_graph([node], "constant", inputs, [output]), opset_imports=[helper.make_opsetid("", 20)]
    )
    results: Any = ReferenceEvaluator(model).run(None, {name: constants[name] for name in node.input if name})
    found = np.asarray(results[0])
    return found.astype(np.float32) if np.issubdtype(found.dtype, np.floating) else found


def _flattened(node: NodeProto, shape: list[int], constants: dict[str, Array]) -> NodeProto:
    """Write a reshape, whose result has this shape for one image, without the number of images."""
    if len(shape) == 2:
        return helper.make_node("Flatten", node.input[:1], node.output, axis=1)
    name = f"{node.output[0]} shape"
    constants[name] = np.array(shape)
    return helper.make_node("Reshape", [node.input[0], name], node.output)


def _is_read(layer: str, forward: Sequence[NodeProto]) -> bool:
    weight = f"{layer}.weight"
    return any(node.op_type in ("Conv", "Gemm") and weight == node.input[1] for node in forward)


def _shapes(graph: NetworkGraph, state: State) -> dict[str, tuple[int, ...]]:
    """Find the shapes of all values by computing them."""
    names = [name for node in graph.forward for name in node.output]
    given = {IMAGES: np.zeros((_TRIED_ON, *graph.groups.input_shape), np.float32)}
    program = graph.program([IMAGES], names, state)
    for output in program.graph.output:
        output.ClearField("type")  # not all are floats
    values: dict[str, Array] = {**state, **given, **Session(program, state).run(given)}
    return {name: value.shape for name, value in values.items()}


def _compare(graph: NetworkGraph, base: BaseModel, plan: Plan) -> None:
    """Compare what the graph computes with the submodel of a plan. Raises ModelError when it differs."""
    state, groups = slice_state(base.state, base.groups, plan), subgroups(base.groups, plan)
    module, rng = base.rebuild(state), np.random.default_rng(0)
    x = rng.standard_normal((_TRIED_ON, *groups.input_shape)).astype(np.float32)
    cotangent = rng.standard_normal((_TRIED_ON, groups.classes)).astype(np.float32)
    given = {IMAGES: x, COTANGENT: cotangent}
    computed = Session(graph.fitted(state).program(INPUTS, graph.results, state), state).run(given)
    found = [(SCORES, computed[SCORES])]
    found += [(f"effect of {c.layer}", of_channels(computed[effect_of(c.layer)], g, c)) for g, c in consumers(groups)]
    found += [(f"sensitivity of {layer}", computed[sensitivity_of(layer)]) for layer in consuming_layers(groups)]
    wanted = _by_torch(module, groups, torch.from_numpy(x), torch.from_numpy(cotangent))
    for (name, value), expected in zip(found, wanted, strict=True):
        error = float(np.linalg.norm(value - expected)) / max(float(np.linalg.norm(expected)), 1e-12)
        allowed = TOLERANCE if name == SCORES else GRADIENTS
        if not error <= allowed:
            raise ModelError(
                f"{base.name} has another {name} as an ONNX graph (relative error {error:.2g}, at most {allowed:g}): "
                "its phones need torch, or take the server's scores"
            )


def _by_torch(module: nn.Module, groups: ChannelGroups, x: torch.Tensor, cotangent: torch.Tensor) -> list[Array]:
    """Compute with torch the scores, the effects at all consumers, and the sensitivities of all consuming layers."""

    def loss(scores: torch.Tensor) -> torch.Tensor:
        return (scores * cotangent).sum()

    modules = dict(module.named_modules())
    gates = [torch.ones(len(x), group.channels, requires_grad=True) for group, _ in consumers(groups)]
    handles = [
        modules[consumer.layer].register_forward_pre_hook(gate_hook(consumer, gate))
        for (_, consumer), gate in zip(consumers(groups), gates, strict=True)
    ]
    with torch.enable_grad(), hooks(handles):
        scores = module(x)
        effects = torch.autograd.grad(loss(scores), gates)
    matrices = gradient_matrices(module, groups, x, loss, len(x))
    sensitivities = [matrices[layer] * len(x) for layer in consuming_layers(groups)]
    return [scores.detach().numpy(), *(effect.numpy() for effect in effects), *sensitivities]
