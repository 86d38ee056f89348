"""Programs in eight bits, against the same in single precision."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from fedcaptor.common.onnx_graph import embedded, program, with_half_weights
from fedcaptor.common.onnx_quantisation import CALIBRATED_ON, calibration_images, quantised
from fedcaptor.common.onnx_session import Session

Floats = NDArray[np.float32]
RNG = np.random.default_rng(0)


def network(norm: bool, variance: float = 1.0) -> bytes:
    """A convolution, perhaps a batch norm, a rectifier and a linear layer."""
    tensors = {
        "conv": RNG.normal(size=(16, 3, 3, 3)),
        "scale": RNG.uniform(0.5, 2, 16),
        "shift": RNG.normal(size=16),
        "mean": RNG.normal(size=16),
        "variance": variance * RNG.uniform(0.5, 2, 16),
        "linear": RNG.normal(size=(5, 16 * 64)) / 32,
        "bias": RNG.normal(size=5),
    }
    nodes = [helper.make_node("Conv", ["x", "conv"], ["a"], pads=[1, 1, 1, 1], kernel_shape=[3, 3])]
    if norm:
        statistics = ["scale", "shift", "mean", "variance"]
        nodes += [helper.make_node("BatchNormalization", ["a", *statistics], ["b"], epsilon=0.01)]
    nodes += [
        helper.make_node("Relu", ["b" if norm else "a"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"], axis=1),
        helper.make_node("Gemm", ["d", "linear", "bias"], ["y"], transB=1),
    ]
    floats = {name: value.astype(np.float32) for name, value in tensors.items()}
    return embedded(program(nodes, ["x"], ["y"], floats), floats)


def images(count: int) -> Floats:
    return np.random.default_rng(1).normal(size=(count, 3, 8, 8)).astype(np.float32)


def scores(content: bytes, x: Floats) -> Floats:
    return Session(ModelProto.FromString(content), {}).run({"x": x})["y"]


@pytest.mark.parametrize("norm", [False, True])
def test_scores_stay_and_weights_take_one_byte(norm: bool) -> None:
    content, x = network(norm), images(50)
    made, wanted = quantised(content, x), scores(content, x)
    assert 0 < np.abs(scores(made, x) - wanted).max() < 0.03 * np.abs(wanted).max()
    graph = ModelProto.FromString(made).graph
    assert {tensor.data_type for tensor in graph.initializer if np.prod(tensor.dims) > 16} == {TensorProto.INT8}
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    scales = [list(t.dims) for t in graph.initializer if t.data_type == TensorProto.FLOAT]
    assert [16] in scales  # one for each output channel
    assert [5] in scales


def test_values_beyond_the_ranges_seen_are_cut_off() -> None:
    content, x = network(False), images(50)
    wanted = scores(content, x)
    assert np.abs(scores(quantised(content, 0.1 * x), x) - wanted).max() > 0.3 * np.abs(wanted).max()


def test_half_weights_are_half_of_the_bytes() -> None:
    content, x = network(True, variance=1e6), images(4)  # beyond half precision
    half = with_half_weights(content)
    assert len(half) < 0.6 * len(content)
    np.testing.assert_allclose(scores(half, x), scores(content, x), rtol=0.01, atol=0.01)


def test_calibration_images_are_spread_evenly() -> None:
    assert calibration_images(3).tolist() == [0, 1, 2]
    chosen = calibration_images(10 * CALIBRATED_ON)
    assert len(chosen) == CALIBRATED_ON == len(set(chosen.tolist()))
    assert np.diff(chosen).max() <= 11
