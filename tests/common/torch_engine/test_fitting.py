"""Layers as linear maps: rows of patches, and weights by least squares."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedcaptor.common.errors import ModelError
from fedcaptor.common.torch_engine.fitting import LeastSquares, unfold_inputs

pytestmark = pytest.mark.usefixtures("one_thread")

CONVOLUTIONS = [
    nn.Conv2d(3, 5, 3, padding=1),
    nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    nn.Conv2d(3, 5, 3, padding="same", padding_mode="reflect"),
    nn.Conv2d(3, 5, 1, bias=False),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=range(4))
@torch.no_grad()
def test_patches_times_weights_are_the_layers_outputs(layer: nn.Conv2d) -> None:
    x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    expected = layer(x).flatten(2)
    positions = torch.arange(0, expected.shape[2], 3)
    found = unfold_inputs(x, layer, positions) @ layer.weight.flatten(1).T + (0 if layer.bias is None else layer.bias)
    torch.testing.assert_close(found, expected[:, :, positions].permute(0, 2, 1).reshape(-1, 5))


def test_depthwise_layers_are_refused() -> None:
    with pytest.raises(ModelError, match="plain convolution"):
        unfold_inputs(torch.zeros(1, 4, 5, 5), nn.Conv2d(4, 4, 3, groups=4), torch.arange(2))


def problem(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(*shape, generator=generator) + 1 for shape in ((rows, columns), (rows, 2), (2, columns)))


def test_without_a_ridge_it_is_least_squares() -> None:
    x, wanted, start = problem(60, 4)
    weight, constant = LeastSquares(x, start, 0.0).fit(wanted)
    expected = torch.linalg.lstsq(torch.cat([x, torch.ones(60, 1)], 1), wanted).solution.T
    torch.testing.assert_close(torch.cat([weight, constant[:, None]], 1), expected, atol=1e-4, rtol=1e-4)


def test_without_a_constant_it_goes_through_the_origin() -> None:
    x, wanted, start = problem(60, 4)
    weight, constant = LeastSquares(x, start, 0.0, constant=False).fit(wanted)
    torch.testing.assert_close(weight, torch.linalg.lstsq(x, wanted).solution.T, atol=1e-4, rtol=1e-4)
    assert (constant == 0).all()


@pytest.mark.parametrize("ridge", [0.1, 10.0])
def test_more_columns_than_rows_give_the_same_as_the_other_way_round(ridge: float) -> None:
    """Columns of zeros add nothing but make it be solved in the rows."""
    x, wanted, start = problem(12, 8)
    padded, more = torch.cat([x, torch.zeros(12, 8)], 1), torch.cat([start, torch.zeros(2, 8)], 1)
    weight, constant = LeastSquares(x, start, ridge).fit(wanted)
    # The ridge's unit is a mean over columns: twice as many, half of them zero.
    other, same = LeastSquares(padded, more, 2 * ridge).fit(wanted)
    torch.testing.assert_close(other[:, :8], weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(same, constant, atol=1e-4, rtol=1e-4)


def test_a_strong_ridge_keeps_the_start() -> None:
    x, wanted, start = problem(60, 4)
    weight, constant = LeastSquares(x, start, 1e9).fit(wanted)
    torch.testing.assert_close(weight, start)
    torch.testing.assert_close(constant, wanted.mean(0) - start @ x.mean(0))


def test_an_input_that_is_constant_changes_nothing() -> None:
    _, wanted, start = problem(60, 4)
    weight, constant = LeastSquares(torch.full((60, 4), 3.0), start, 0.01).fit(wanted)
    torch.testing.assert_close(weight, start, atol=1e-4, rtol=1e-4)
    assert torch.isfinite(constant).all()
