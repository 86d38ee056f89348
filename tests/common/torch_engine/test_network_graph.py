"""A network's graph has no weights, is what was written, and is refused where it would compute something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedcaptor.cli.main import app
from fedcaptor.common.errors import ModelError
from fedcaptor.common.onnx_graph import IMAGES, SCORES, NetworkGraph
from fedcaptor.common.onnx_session import Session
from fedcaptor.common.torch_engine import network_graph as module
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.network_graph import network_graph
from tests import tiny
from tests.common.torch_engine.test_factory import base_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]  # exporting takes seconds


def of(*layers: nn.Module) -> BaseModel:
    return BaseModel.of(nn.Sequential(*layers), "mine", (1, 9, 9), (0.0,), (1.0,))


def scores(graph: NetworkGraph, base: BaseModel, x: np.ndarray) -> np.ndarray:
    return Session(graph.program([IMAGES], [SCORES], base.state), base.state).run({IMAGES: x})[SCORES]


def test_the_command_writes_a_graph_without_weights(bars: tuple[Path, Path], tmp_path: Path) -> None:
    data, weights = bars
    out = tmp_path / "network.onnx"
    app(
        ["export-graph", tiny.MODEL, "--weights", str(weights), "--data", str(data), "--out", str(out)],
        standalone_mode=False,
    )
    graph, base = NetworkGraph.load(out), tiny.base_model(weights)
    assert graph.groups == base.groups
    assert base.state["0.weight"].tobytes() not in out.read_bytes()
    x = np.random.default_rng(0).standard_normal((4, 1, 12, 12)).astype(np.float32)
    np.testing.assert_allclose(scores(graph, base, x), base.module(torch.from_numpy(x)).detach(), rtol=1e-4, atol=1e-5)


def test_adaptive_pools_and_flattened_maps_are_exported() -> None:
    """Windows of the pool have two sizes."""
    base = of(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(36, 5))
    x = np.random.default_rng(0).standard_normal((4, 1, 9, 9)).astype(np.float32)
    graph = network_graph(base)
    np.testing.assert_allclose(scores(graph, base, x), base.module(torch.from_numpy(x)).detach(), rtol=1e-4, atol=1e-5)


def test_networks_that_cannot_be_exported_are_named() -> None:
    layers = (nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(100, 5))
    with pytest.raises(ModelError, match=r"mine has an operation Tanh.*take the server's scores"):
        network_graph(of(*layers))
    with pytest.raises(ModelError, match=r"halved cannot become an ONNX graph .*take the server's scores"):
        network_graph(base_of("tests.common.own_networks:halved", (3, 32, 32)))


def test_a_graph_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedcaptor.common import onnx_gradients

    monkeypatch.setitem(onnx_gradients._RULES, "Relu", onnx_gradients._RULES["Identity"])
    layers = (nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(100, 5))
    with pytest.raises(ModelError, match=r"mine has another effect of 2 as an ONNX graph .*at most 0.05"):
        network_graph(of(*layers))
    monkeypatch.undo()
    monkeypatch.setattr(module, "TOLERANCE", 0.0)
    with pytest.raises(ModelError, match="mine has another scores as an ONNX graph"):
        network_graph(of(*layers))
