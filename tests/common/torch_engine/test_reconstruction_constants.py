"""Weight reconstruction: what the kept channels can say of the removed ones is not lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedcaptor.common.observations import Sampler
from fedcaptor.common.plan import Plan
from fedcaptor.common.slicer import slice_state
from fedcaptor.common.torch_engine.evidence import Response, responses
from fedcaptor.common.torch_engine.network import network, state_of
from fedcaptor.common.torch_engine.reconstruction import _Layer, reconstruct_weights
from fedcaptor.common.torch_engine.trace import trace

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (2, 6, 6)
RIDGE = 1e-6


def convolutional(bias: bool) -> nn.Module:
    """The second convolution has a bias, or hands its constant to the batch norm behind it."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Conv2d(4, 5, 3, bias=bias),
        *([] if bias else [nn.BatchNorm2d(5)]),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 16, 3),
    )


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.4)
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return module.eval().requires_grad_(False)


def make_redundant(first: nn.Conv2d, constant: float = 0.7) -> None:
    """Channel 3 becomes 2·(channel 0) − channel 1 + constant, everywhere."""
    first.weight[3] = 2 * first.weight[0] - first.weight[1]
    assert first.bias is not None
    first.bias[3] = 2 * first.bias[0] - first.bias[1] + constant


def reconstructed(module: nn.Module, kept: dict[str, list[int]], x: torch.Tensor, ridge: float = RIDGE) -> nn.Module:
    groups = trace(module, "own", SHAPE)
    state = {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}
    everything = {group.name: list(range(group.channels)) for group in groups.groups}
    plan = Plan.of(groups, {**everything, **kept})
    rebuilt = network(filled(convolutional(any(n == "1.bias" for n in state))), slice_state(state, groups, plan))
    sampler = Sampler(len(x))
    with responses(module, groups, sampler) as full:
        module(x)
    reconstruct_weights(rebuilt, groups, plan, x, full, ridge)
    return rebuilt


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [True, False])
def test_a_linearly_redundant_channel_is_cut_without_loss(bias: bool, x: torch.Tensor) -> None:
    """Valid convolution: the constant of the removed channel is the same at every position, in bias or batch norm."""
    module = filled(convolutional(bias))
    make_redundant(module[0])
    small = reconstructed(module, {"0": [0, 1, 2]}, x)
    assert small[1].weight.shape == (5, 3, 3, 3)
    np.testing.assert_allclose(small(x), module(x), rtol=2e-3, atol=5e-3)
    other = torch.randn(10, *SHAPE, generator=torch.Generator().manual_seed(2))
    np.testing.assert_allclose(small(other), module(other), rtol=2e-3, atol=5e-3)


def test_slicing_alone_would_lose_it(x: torch.Tensor) -> None:
    """Slicing without what the removed channel says is worse by orders of magnitude."""
    module = filled(convolutional(True))
    make_redundant(module[0])
    groups = trace(module, "own", SHAPE)
    state = state_of(module)
    plan = Plan.of(groups, {"0": [0, 1, 2]})
    sliced = network(filled(convolutional(True)), slice_state(state, groups, plan))
    assert float((sliced(x) - module(x)).abs().max()) > 0.1


def test_the_constant_goes_into_bias_or_running_mean(x: torch.Tensor) -> None:
    """A removed channel that is constant is worth weight × constant a position."""
    for bias in (True, False):
        module = filled(convolutional(bias))
        module[0].weight[3] = 0
        module[0].bias[3] = 0.7
        shift = 0.7 * module[1].weight[:, 3].sum((1, 2))
        small = reconstructed(module, {"0": [0, 1, 2]}, x)
        np.testing.assert_allclose(small[1].weight, module[1].weight[:, :3], atol=1e-4)
        if bias:
            np.testing.assert_allclose(small[1].bias, module[1].bias + shift, atol=1e-4)
        else:
            assert small[1].bias is None
            np.testing.assert_allclose(small[2].running_mean, module[2].running_mean - shift, atol=1e-4)
            np.testing.assert_allclose(small[2].running_var, module[2].running_var)


def test_errors_of_earlier_layers_are_corrected_later(x: torch.Tensor) -> None:
    """With channels removed that depend on no others, reconstructing the last layer too brings the outputs nearer."""
    module = filled(convolutional(True))
    kept = {"0": [0, 2], "1": [0, 1, 2]}
    groups = trace(module, "own", SHAPE)
    state = state_of(module)
    sliced = network(filled(convolutional(True)), slice_state(state, groups, Plan.of(groups, kept)))
    small = reconstructed(module, kept, x, ridge=1.0)
    truth = module(x)
    error = float((small(x) - truth).square().mean())
    assert error < 0.5 * float((sliced(x) - truth).square().mean())


def test_a_whole_plan_changes_nothing_and_classes_may_go(x: torch.Tensor) -> None:
    module = filled(convolutional(False))
    np.testing.assert_allclose(reconstructed(module, {}, x)(x), module(x), atol=2e-4)
    output = trace(module, "own", SHAPE).output.name
    np.testing.assert_allclose(reconstructed(module, {output: [0, 2]}, x)(x), module(x)[:, [0, 2]], atol=2e-4)


def test_observations_of_one_image_count_less_than_those_of_many() -> None:
    """Sixteen equal positions an image are as one where sliced weights count as 16^¼ as much: for a sixteenth each."""
    x, wanted = (torch.randn(40, n, generator=torch.Generator().manual_seed(n)) for n in (2, 5))
    layers = []
    for side, ridge in ((1, 5.0 * 2 / 16), (4, 5.0)):
        values, layer = wanted.repeat_interleave(side**2, 0), filled(nn.Conv2d(2, 5, 1))
        maps = x[:, :, None, None].expand(-1, -1, side, side)
        _Layer(None, None, Response(values, torch.arange(side**2)), ridge).fit(layer, (maps,))
        layers.append(layer)
    torch.testing.assert_close(layers[0].weight, layers[1].weight)
    assert not torch.allclose(layers[0].weight, filled(nn.Conv2d(2, 5, 1)).weight)
