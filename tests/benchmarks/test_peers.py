"""Torch-Pruning's networks: within budget, answering for the needed classes, and the same as the plan read off them."""

import numpy as np
import pytest
import torch

from benchmarks import peers
from benchmarks.peers import PEERS, mean_gradient, squared_gradients
from fedcaptor.common.errors import PlanError
from fedcaptor.common.planner import Budget
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.factory import sliced
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.torch_engine.network import state_of
from fedcaptor.common.torch_engine.registry import build
from fedcaptor.common.torch_engine.strategies import Task
from fedcaptor.common.weights_file import save_state

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = np.array([1, 4, 5])
SHAPE = (3, 12, 12)


def task_of(name, folder):
    """Random weights, twelve random images."""
    torch.manual_seed(0)
    weights = folder / "weights.safetensors"
    save_state(weights, state_of(build(name, 6, SHAPE)), {})
    images = np.random.default_rng(0).integers(0, 256, (12, 12, 12, 3), dtype=np.uint8)
    return Task(BaseModel.load(weights, name, SHAPE), CLASSES, images, images)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return task_of("resnet20", tmp_path_factory.mktemp("peers"))


@pytest.mark.parametrize("name", PEERS)
def test_a_submodel_holds_its_budget_and_answers_among_the_needed_classes(task, monkeypatch, name):
    monkeypatch.setattr(peers, "HALVINGS", 4)
    peer = PEERS[name](task)
    large, small = (peer.submodel(Budget(macs=macs)) for macs in (0.8, 0.4))
    assert small.macs_ratio <= 0.4 < large.macs_ratio <= 0.8
    assert small.classes.tolist() == CLASSES.tolist()
    assert small.scores(task.images).shape == (len(task.images), 3)
    assert all(len(kept) % 8 == 0 for name, kept in small.plan.kept.items() if name != task.base.groups.output.name)


@pytest.mark.parametrize("model", ["resnet20", "tests.common.own_networks:depthwise_with_bias"])
def test_the_plan_gives_the_network_that_torch_pruning_left(tmp_path, monkeypatch, model):
    monkeypatch.setattr(peers, "MULTIPLE", 2)
    task = task_of(model, tmp_path)
    peer = PEERS["torch-pruning-taylor"](task)
    plan, network = peer.cut(0.4, 2)
    assert sum(plan.counts().values()) < sum(peer.limited.counts().values())
    x = normalise(task.images, task.base.mean, task.base.std)
    with torch.no_grad():
        torch.testing.assert_close(sliced(task.base, plan).module(x), network(x))


def test_a_budget_that_it_cannot_reach_is_refused(task, monkeypatch):
    monkeypatch.setattr(peers, "STEPS", (1,))
    monkeypatch.setattr(peers, "HALVINGS", 2)
    with pytest.raises(PlanError, match=r"MACs budget is 0.001.*nearest that Torch-Pruning reaches"):
        PEERS["torch-pruning-group-norm"](task).submodel(Budget(macs=0.001))


def test_gradients_by_hand():
    # One weight per class, no bias: with zero weights p = ½ each, ∂L/∂w = (p − 1 or p) · x
    images, labels = torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1])
    network = torch.nn.Linear(1, 2, bias=False)
    torch.nn.init.zeros_(network.weight)
    mean_gradient(network, images, labels)
    assert network.weight.grad.flatten().tolist() == pytest.approx([(-0.5 + 1.5) / 2, (0.5 - 1.5) / 2])
    squared_gradients(network, images, labels)
    assert network.weight.grad.flatten().tolist() == pytest.approx([(0.25 + 2.25) / 2] * 2)
