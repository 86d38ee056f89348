"""A layer as a linear map: its input as rows of a matrix, and its weights by least squares."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fedcaptor.common.errors import ModelError


def patches(x: torch.Tensor, layer: Any, positions: torch.Tensor) -> torch.Tensor:
    """What a convolution or linear layer multiplies with its weights at some output positions [P]: [N · P, K].

    `x`: its input [N, C, H, W] or [N, K]. Columns in the order of the flattened weights.
    """
    if isinstance(layer, nn.Linear):
        return x
    if not isinstance(layer, nn.Conv2d) or layer.groups > 1:
        raise ModelError(f"a {type(layer).__name__} cannot be merged, must be a linear layer or a plain convolution")
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode=_PADDING[layer.padding_mode])
    (down, right), (rows, columns), (stride, step) = layer.dilation, layer.kernel_size, layer.stride
    width = (padded.shape[3] - right * (columns - 1) - 1) // step + 1
    top, left = positions // width * stride, positions % width * step
    taps = [padded[:, :, top + down * i, left + right * j] for i in range(rows) for j in range(columns)]
    return torch.stack(taps, 2).permute(0, 3, 1, 2).reshape(len(x) * len(positions), -1)


_PADDING = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class LeastSquares:
    """Ridge regression on one matrix of inputs for several targets: it is factorised once.

    `x` [R, K]; `start` [O, K]: the weights that the ridge draws to, as hard as `ridge` observations of them would.
    `constant` false: the map is linear, not affine. Needs min(R, K)² memory: with fewer rows than columns it is solved
    in the rows.
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
        """Weights [O, K] and constants [O] for `wanted` outputs [R, O]."""
        mean = wanted.mean(0) if self.constant else torch.zeros(wanted.shape[1])
        missing = wanted - mean - self.given
        if self.by_rows:
            change = self.x.T @ torch.cholesky_solve(missing, self.factor)
        else:
            change = torch.cholesky_solve(self.x.T @ missing, self.factor)
        weight = self.start + change.T
        return weight, mean - weight @ self.mean
