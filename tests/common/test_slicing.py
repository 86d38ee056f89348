"""A sliced network equals the full one that reads zeros in place of the removed channels, on every registered model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from fedcaptor.common.errors import ModelError
from fedcaptor.common.groups import ChannelGroups, State
from fedcaptor.common.plan import Plan
from fedcaptor.common.slicer import slice_state
from fedcaptor.common.torch_engine import factory
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.network import network
from fedcaptor.common.torch_engine.registry import build, names, skeleton
from fedcaptor.common.torch_engine.trace import trace
from tests.common import own_networks

CLASSES = 10
OWN = [
    "plain",
    "concatenating",
    "concatenating_image",
    "dense",
    "depthwise_with_bias",
    "gated",
    "all_convolutional",
    "flat_norm",
    "grouped",
    "grouped_twice",
    "grouped_residual",
    "halved",
    "inverted",
]


pytestmark = pytest.mark.usefixtures("one_thread")


def shape_of(name: str) -> tuple[int, int, int]:
    return {"small-cnn": (1, 28, 28), "alexnet": (3, 23, 20), "resnet56": (1, 16, 16)}.get(
        name, (3, 64, 64) if name.startswith("torchvision/") else (3, 32, 32)
    )


def random_state(module: nn.Module, rng: np.random.Generator) -> State:
    """Weights with He variance, biases and batch-norm statistics far from their defaults, so that mix-ups show."""
    state: State = {}
    for key, tensor in module.state_dict().items():
        shape = tuple(tensor.shape)
        if not tensor.is_floating_point():
            state[key] = tensor.numpy()
        elif key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
            state[key] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        elif len(shape) == 1:
            state[key] = rng.normal(0.1, 0.3, shape).astype(np.float32)
        else:
            scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
            state[key] = rng.standard_normal(shape, dtype=np.float32) * scale
    return state


def random_plan(groups: ChannelGroups, rng: np.random.Generator) -> Plan:
    """A random non-empty part of a random three quarters of the groups."""
    chosen = [g for g in groups.groups if g.output or rng.random() < 0.75]
    return Plan.of(groups, {g.name: rng.choice(g.channels, rng.integers(1, g.channels + 1), False) for g in chosen})


def cut_by_cut(state: State, groups: ChannelGroups, plan: Plan) -> State:
    """Slicing in its simplest form, one mask after the other: what every cut leaves is taken from the full tensor."""
    masks = {name: [np.ones(size, bool) for size in shape] for name, shape in groups.tensors.items()}
    for group in groups.groups:
        removed = np.setdiff1d(np.arange(group.channels), plan.kept.get(group.name, np.arange(group.channels)))
        for cut in group.slices:
            for tap in range(cut.taps):
                masks[cut.tensor][cut.dim][cut.offset + removed * cut.taps + tap] = False
    return {name: state[name][np.ix_(*found)] if found else state[name] for name, found in masks.items()}


def blinded(state: State, groups: ChannelGroups, plan: Plan) -> State:
    """The full network's tensors, consumers' weights at removed channels set to zero."""
    result = dict(state)
    for group in groups.prunable:
        removed = np.setdiff1d(np.arange(group.channels), plan.kept.get(group.name, np.arange(group.channels)))
        for consumer in group.consumers:
            key = f"{consumer.layer}.weight"
            columns = [consumer.offset + c * consumer.taps + t for c in removed for t in range(consumer.taps)]
            result[key] = result[key].copy()
            result[key][:, columns] = 0
    return result


@torch.no_grad()
def counted_macs(module: nn.Module, shape: tuple[int, int, int]) -> int:
    """MACs of one image, counted on the real layers as they run."""
    total = 0

    def count(layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        weight = layer.get_parameter("weight")
        total += weight.numel() * output[0].numel() // len(weight)

    handles = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    module(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return total


def assert_slices(module: nn.Module, name: str, shape: tuple[int, int, int], plans: int) -> ChannelGroups:
    """The whole property, for a few random plans. Returns the groups."""
    rng = np.random.default_rng(7)
    state = random_state(module, rng)
    full = network(module, state)
    groups = trace(full, name, shape)
    assert groups.macs() == counted_macs(full, shape)
    assert groups.parameters() == sum(t.numel() for t in full.state_dict().values() if t.is_floating_point())
    base = BaseModel(name, state, groups, (0.5,) * shape[0], (0.5,) * shape[0], full)
    x = torch.from_numpy(rng.standard_normal((2, *shape)).astype(np.float32))
    for _ in range(plans):
        plan = random_plan(groups, rng)
        tensors = slice_state(state, groups, plan)
        assert all(np.array_equal(tensors[key], array) for key, array in cut_by_cut(state, groups, plan).items())
        sliced = factory.sliced(base, plan).module
        assert {key: t.numpy().tobytes() for key, t in sliced.state_dict().items()} == {
            key: array.tobytes() for key, array in tensors.items()
        }
        assert {key: tuple(t.shape) for key, t in sliced.state_dict().items()} == groups.shapes(plan.counts())
        assert groups.parameters(plan.counts()) == sum(a.size for a in tensors.values() if a.dtype == np.float32)
        assert groups.macs(plan.counts()) == counted_macs(sliced, shape)
        with torch.no_grad():
            expected = network(skeleton(name, CLASSES, shape), blinded(state, groups, plan))(x)
            expected = expected[:, torch.from_numpy(plan.classes(groups))]
            difference = (sliced(x) - expected).abs().max() / expected.abs().max()
        assert difference < 1e-4
    return groups


LARGE = ("torchvision/vgg16", "torchvision/alexnet")  # seconds each


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in LARGE else name for name in names()]
)
def test_slicing_equals_hiding_on_registered_models(name: str) -> None:
    shape = shape_of(name)
    groups = assert_slices(build(name, CLASSES, shape), name, shape, 1 if name.startswith("torchvision/") else 4)
    assert groups.output.channels == CLASSES
    assert groups.groups[-1] is groups.output
    assert ChannelGroups.from_json(groups.to_json()).digest == groups.digest
    assert ChannelGroups.from_json(groups.to_json()) == groups


@pytest.mark.parametrize(
    ("name", "shape", "digest"),
    [
        ("small-cnn", (1, 28, 28), "a29463e64585c63f55fc5b39491ee4493f8ac4a2b129c8682243642fd8ffff0d"),
        ("vgg16", (3, 32, 32), "3f75e8cc8554c14b268a368e8bbfde81df213e789ea7419bf903471e783032ad"),
        ("alexnet", (3, 32, 32), "0d8777680afb1634005aaaba83b50063691d3715b70099aa60c22d2bae71a159"),
    ],
)
def test_the_digest_never_changes_as_runs_and_latency_tables_are_named_by_it(name, shape, digest) -> None:
    assert trace(build(name, 10, shape), name, shape).digest == digest


@pytest.mark.parametrize("factory", OWN)
def test_slicing_equals_hiding_on_own_networks(factory: str) -> None:
    name = f"{own_networks.__name__}:{factory}"
    assert_slices(build(name, CLASSES, (3, 16, 12)), name, (3, 16, 12), 6)


def test_groups_of_a_chain_follow_execution_order() -> None:
    groups = trace(build("small-cnn", 5, (3, 20, 24)), "small-cnn", (3, 20, 24))
    convolutions = [f"features.{i}" for i in (0, 4, 7, 11, 14, 18)]
    assert [g.name for g in groups.groups] == [*convolutions, "classifier.0", "classifier.3"]
    assert [layer.name for layer in groups.layers] == [g.name for g in groups.groups]
    first = groups.groups[0]
    assert [(c.tensor, c.dim) for c in first.slices] == [
        ("features.0.weight", 0),
        *((f"features.1.{key}", 0) for key in ("weight", "bias", "running_mean", "running_var")),
        ("features.4.weight", 1),
    ]
    assert [(c.layer, c.norm) for c in first.consumers] == [("features.4", "features.5")]
    assert [(c.tensor, c.dim) for c in groups.output.slices] == [("classifier.3.weight", 0), ("classifier.3.bias", 0)]
    assert groups.groups[-2].consumers[0].norm is None
    written = [group["consumers"] for group in json.loads(groups.to_json())["groups"]]
    assert [(c["kind"], c["bias"]) for c in written[0]] == [("conv", False)]
    assert [(c["kind"], c["bias"]) for c in written[-2]] == [("linear", True)]


def test_flattened_maps_reach_the_linear_layer_as_taps() -> None:
    groups = trace(build("alexnet", 10, (3, 32, 32)), "alexnet", (3, 32, 32))
    last = groups.by_name["features.10"]
    assert [(c.layer, c.taps) for c in last.consumers] == [("classifier.1", 9)]
    assert groups.shapes({"features.10": 10})["classifier.1.weight"] == (1024, 90)


def test_residual_sum_is_one_group_with_all_its_producers() -> None:
    groups = trace(build("resnet20", 10, (3, 16, 16)), "resnet20", (3, 16, 16))
    stem = groups.groups[0]
    assert stem.producers == ("stem.0", *(f"blocks.{i}.body.3" for i in range(3)))
    readers = ["blocks.0.body.0", "blocks.1.body.0", "blocks.2.body.0", "blocks.3.body.0", "blocks.3.shortcut.0"]
    assert [c.layer for c in stem.consumers] == readers


def test_depthwise_convolutions_are_cut_but_read_nothing() -> None:
    name = "torchvision/mobilenet_v2"
    groups = trace(build(name, 10, (3, 32, 32)), name, (3, 32, 32))
    depthwise = {layer.name for layer in groups.layers if layer.depthwise}
    assert len(depthwise) == 17
    assert not depthwise & {c.layer for g in groups.groups for c in g.consumers}
    assert not depthwise & {p for g in groups.groups for p in g.producers}
    assert depthwise <= {cut.tensor.removesuffix(".weight") for g in groups.groups for cut in g.slices}


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("transposed", "convolution up is transposed"),
        ("grouped_image", "grouped convolution mix reads or makes channels that stay"),
        ("grouped_classes", "the classes must be the outputs of one linear layer"),
        ("shared", "layer twice is used twice"),
        ("normalised_over_channels", r"must keep all channels of one: layer norm \(GroupNorm\) computes over them"),
        ("shuffled", "must keep all channels of one: removing some changes what the others give"),
        ("two_heads", "does not run when sliced"),
        ("fixed_view", "must keep all channels of one: .* or does not run"),
        ("sum_with_image", "must keep all channels of one: removing some"),
        ("concatenating_flat", "a flatten behind a concatenation, ties layer two to a part of one"),
        ("splitting", "must keep all channels of one, two: an operation splits"),
    ],
)
def test_what_cannot_be_sliced_is_refused(factory: str, message: str) -> None:
    module = build(f"{own_networks.__name__}:{factory}", CLASSES, (4, 16, 12))
    with pytest.raises(ModelError, match=message):
        trace(module, factory, (4, 16, 12))


def test_image_too_small_for_a_network_is_refused() -> None:
    with pytest.raises(ModelError, match="does not run on images"):
        trace(build("alexnet", 10, (3, 32, 32)), "alexnet", (3, 20, 20))
