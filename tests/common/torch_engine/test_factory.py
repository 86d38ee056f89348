"""The factory gives what slicing step by step gives, on any number of threads, and leaves the base alone."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

from fedcaptor.common.errors import ModelError, PlanError
from fedcaptor.common.groups import State
from fedcaptor.common.plan import Plan
from fedcaptor.common.slicer import slice_state
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.factory import sliced, sliced_all
from fedcaptor.common.torch_engine.network import network
from fedcaptor.common.torch_engine.registry import build, names, skeleton
from fedcaptor.common.torch_engine.trace import trace
from tests.common.test_slicing import CLASSES, random_plan, random_state, shape_of

pytestmark = pytest.mark.usefixtures("one_thread")


def base_of(name: str, shape: tuple[int, int, int]) -> BaseModel:
    module = build(name, CLASSES, shape)
    state = random_state(module, np.random.default_rng(3))
    module = network(module, state)
    return BaseModel(name, state, trace(module, name, shape), (0.5,) * shape[0], (0.5,) * shape[0], module)


def assert_same(module: nn.Module, expected: State) -> None:
    found = module.state_dict()
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert found[key].numpy().dtype == array.dtype
        np.testing.assert_array_equal(found[key].numpy(), array)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "resnet56", "torchvision/mobilenet_v2"])
def test_equals_slicing_and_rebuilding(name: str) -> None:
    """Registered networks come from twins of an empty one: here against one that is built anew."""
    base, rng = base_of(name, shape_of(name)), np.random.default_rng(5)
    for _ in range(3):
        plan = random_plan(base.groups, rng)
        made, tensors = sliced(base, plan).module, slice_state(base.state, base.groups, plan)
        rebuilt = network(build(name, CLASSES, base.groups.input_shape), tensors)
        assert_same(made, tensors)
        assert str(made) == str(rebuilt)
        assert not any(p.requires_grad for p in made.parameters())
        x = torch.from_numpy(rng.standard_normal((1, *base.groups.input_shape)).astype(np.float32))
        assert torch.equal(made(x), rebuilt(x))


def test_a_submodel_shares_nothing_with_its_base() -> None:
    base = base_of("resnet20", (3, 32, 32))
    before = {key: array.copy() for key, array in base.state.items()}
    full = {key: tensor.clone() for key, tensor in base.module.state_dict().items()}
    made = sliced(base, Plan.of(base.groups, {base.groups.prunable[1].name: [0, 3]}))
    with torch.no_grad():
        for tensor in made.module.state_dict().values():
            tensor.fill_(7)
    assert all(np.array_equal(base.state[key], array) for key, array in before.items())
    assert all(torch.equal(base.module.state_dict()[key], tensor) for key, tensor in full.items())


def test_uncut_tensors_are_shared_unless_asked_for() -> None:
    base = base_of("small-cnn", (1, 16, 16))
    plan = Plan.of(base.groups, {"features.0": [1, 4]})
    shared, own = (slice_state(base.state, base.groups, plan, own=own) for own in (False, True))
    for key, array in base.state.items():
        cut = key.startswith(("features.0.", "features.1.", "features.4.")) and bool(array.shape)
        cut = cut and not key.endswith(("num_batches_tracked",))
        assert (shared[key] is array) is not cut
        assert not np.shares_memory(own[key], array)
        np.testing.assert_array_equal(own[key], shared[key])


def test_threads_give_the_same_in_order() -> None:
    base, rng = base_of("resnet20", (3, 32, 32)), np.random.default_rng(5)
    plans = [random_plan(base.groups, rng) for _ in range(7)]
    for threads in (1, 3):
        made = list(sliced_all(base, iter(plans), threads))
        assert [submodel.plan for submodel in made] == plans
        for submodel, plan in zip(made, plans, strict=True):
            assert_same(submodel.module, slice_state(base.state, base.groups, plan))
    assert list(sliced_all(base, [], 2)) == []


def test_no_more_submodels_wait_than_threads() -> None:
    base = base_of("small-cnn", (1, 16, 16))
    taken, plan = [], Plan.of(base.groups, {"features.0": [0]})

    def plans():
        for number in range(20):
            taken.append(number)
            yield plan

    made = sliced_all(base, plans(), 2)
    next(made)
    assert len(taken) == 3
    made.close()
    assert not any(thread.name.startswith("ThreadPoolExecutor") for thread in threading.enumerate())


def test_bad_plans_are_explained() -> None:
    base = base_of("small-cnn", (1, 16, 16))
    with pytest.raises(PlanError, match="threads is 0, must be at least 1"):
        next(sliced_all(base, [], 0))
    for wrong in ([0, 32], [-1, 3]):
        plan = Plan(base.groups.digest, {"features.0": np.array(wrong)})
        with pytest.raises(PlanError, match=r"must lie in 0\.\.31: plan it again"):
            sliced(base, plan)
    del base.state["features.1.bias"]
    with pytest.raises(ModelError, match=r"features\.1\.bias is nothing"):
        sliced(base, Plan.of(base.groups, {"features.0": [0]}))


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_skeletons_share_nothing_that_changes(name: str) -> None:
    """Hooks, submodules and tensors set on one must not be seen on the next."""
    shape = shape_of(name)
    first = skeleton(name, CLASSES, shape)
    for layer in first.modules():
        layer.register_forward_pre_hook(lambda layer, inputs: None)
        layer.register_forward_hook(lambda layer, inputs, output: None)
        layer.register_full_backward_hook(lambda layer, into, out: None)
        layer.register_buffer("added", torch.zeros(()))
        layer.train()
    first.add_module("extra", nn.Identity())
    second, built = skeleton(name, CLASSES, shape), build(name, CLASSES, shape)
    assert str(second) == str(built)
    assert list(second.state_dict()) == list(built.state_dict())
    hooks = [layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks for layer in second.modules()]
    assert not any(hooks)
    assert not any(layer.training for layer in second.modules())
    assert not {id(layer) for layer in first.modules()} & {id(layer) for layer in second.modules()}
