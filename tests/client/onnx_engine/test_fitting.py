"""What numpy fits and gathers is what torch does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

from fedcaptor.client.onnx_engine import fitting as own
from fedcaptor.common.torch_engine import fitting as twin


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("rows", [40, 600])
def test_least_squares_are_those_of_torch(rows: int, constant: bool) -> None:
    """With fewer observations than weights and with more, both beyond one block of the triangular solver."""
    rng = np.random.default_rng(0)
    x, start, wanted = (rng.standard_normal(size).astype(np.float32) for size in ((rows, 300), (7, 300), (rows, 7)))
    found = own.LeastSquares(x.copy(), start, 20, constant).fit(wanted)
    expected = twin.LeastSquares(*map(torch.from_numpy, (x, start)), 20, constant).fit(torch.from_numpy(wanted))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_inputs_of_a_convolution_are_unfolded_as_by_torch() -> None:
    layer = nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 8)).astype(np.float32)
    positions = np.array([0, 5, 17, 40])
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 2, 1, 2], dilations=[1, 2]
    )
    wanted = twin.unfold_inputs(torch.from_numpy(x), layer, torch.from_numpy(positions))
    np.testing.assert_array_equal(own.unfold_inputs(x, node, positions), wanted)
