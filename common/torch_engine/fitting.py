"""Treat a layer as a linear map: unfold its input into rows of a matrix, and fit its weights by least squares."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fedcaptor.common.errors import ModelError


def unfold_inputs(x: torch.Tensor, layer: Any, positions: torch.Tensor) -> torch.Tensor:
    """Gather what a layer multiplies with its weights at some output positions [P] (im2col): [N · P, K].

    `x`: input [N, C, H, W] of a convolution, or [N, …, K] of a linear layer. Columns are in the order of the flattened
    weights. Raises ModelError for any other layer.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])[:, positions].reshape(-1, x.shape[-1])
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
        raise ModelError(
            f"a {type(layer).__name__} cannot be reconstructed, must be a linear layer or a plain convolution"
        )
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=_PADDING[layer.padding_mode])
    (down, right), (rows, columns), (stride, step) = layer.dilation, layer.kernel_size, layer.stride
    width = (padded.shape[3] - right * (columns - 1) - 1) // step + 1
    top, left = positions // width * stride, positions % width * step
    taps = [padded[:, :, top + down * i, left + right * j] for i in range(rows) for j in range(columns)]
    return torch.stack(taps, 2).permute(0, 3, 1, 2).reshape(len(x) * len(positions), -1)


_PADDING = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class LeastSquares:
    """Solve ridge regressions on one matrix of inputs for several targets: it is factorised once.

    Memory is min(R, K)²: with fewer rows than columns it is solved in the rows.

    Args:
        x: Inputs [R, K].
        start: Weights [O, K] that the ridge draws to.
        ridge: How hard, as a number of observations of them.
        constant: False where the map is linear, not affine.
    """

    def __init__(self, x: torch.Tensor, start: torch.Tensor, ridge: float, constant: bool = True) -> None:
        self.mean = x.mean(0) if constant else torch.zeros(x.shape[1])
        self.x = x - self.mean
        self.start, self.given = start, self.x @ start.T
        self.constant, self.by_rows = constant, len(x) < x.shape[1]
        gram = (self.x @ self.x.T if self.by_rows else self.x.T @ self.x).double()
        # Beside the ridge what single precision may have lost, and a floor for dead layers.
        total = float(self.x.square().sum())
        gram.diagonal().add_(total * (ridge / x.numel() + 1e-6) + 1e-8 * len(x))
        self.factor = torch.linalg.cholesky(gram).float()

    def fit(self, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Fit weights [O, K] and constants [O] to `wanted` outputs [R, O]."""
        mean = wanted.mean(0) if self.constant else torch.zeros(wanted.shape[1])
        missing = wanted - mean - self.given
        if self.by_rows:
            change = self.x.T @ torch.cholesky_solve(missing, self.factor)
        else:
            change = torch.cholesky_solve(self.x.T @ missing, self.factor)
        weight = self.start + change.T
        return weight, mean - weight @ self.mean
