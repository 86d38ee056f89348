"""Reconstruct the weights of a sliced network in numpy: `fedcaptor.common.reconstruction` says how and why.

`reconstruction` and `fitting` of `fedcaptor.common.torch_engine` are its twins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper

from fedcaptor.client.onnx_engine.network import Network, Underway, Visit
from fedcaptor.common.arrays import Floats, Indices
from fedcaptor.common.groups import ChannelGroups, Consumer
from fedcaptor.common.observations import consumers
from fedcaptor.common.plan import Plan
from fedcaptor.common.reconstruction import ALIKE, RIDGE, ROUNDS
from fedcaptor.common.slicer import kept_elements

Matrix = npt.NDArray[np.float32]

_BLOCK = 64  # rows that a factorisation and a triangular solve take at a time


@dataclass(frozen=True, eq=False)
class Response:
    """Hold one layer's outputs `values` [N · P, O] for N images at `positions` [P] of its map (a linear layer: one)."""

    values: Matrix
    positions: Indices


def reconstruct_weights(
    sliced: Network, groups: ChannelGroups, plan: Plan, x: Matrix, full: Mapping[str, Response]
) -> None:
    """Reconstruct the weights of a network that `plan` leaves, in place, on normalised images x [N, C, H, W].

    `full`: the full model's responses to the same images, by layer.
    """
    kept = kept_elements(groups, plan)
    reading = {consumer.layer: consumer for group, consumer in consumers(groups) if group.name in plan.kept}
    visits: dict[str, Visit] = {}
    for layer, consumer in reading.items():
        outputs, response = kept.get((f"{layer}.weight", 0)), full[layer]
        own = response.values if outputs is None else response.values[:, outputs]
        visits[layer] = _Layer(sliced, consumer, Response(own, response.positions)).fit
    if visits:
        sliced.visit(Underway.of(x), visits)


@dataclass(frozen=True, eq=False)
class _Layer:
    """Fit one layer of the sliced network to what it should answer."""

    network: Network
    consumer: Consumer
    wanted: Response

    def fit(self, x: Matrix) -> None:
        """Set new weights and constant, from the sliced network's own values, just before the layer uses them."""
        state, layer, norm = self.network.state, self.consumer.layer, self.consumer.norm
        weights, bias = state[f"{layer}.weight"], state.get(f"{layer}.bias")
        seen = unfold_inputs(x, self.network.fitted.reader(layer), self.wanted.positions)
        ridge = RIDGE * len(self.wanted.positions) ** ALIKE
        squares = LeastSquares(seen, weights.reshape(len(weights), -1), ridge, bias is not None or norm is not None)
        weight, constant = squares.fit(self.wanted.values)
        for _ in range(ROUNDS if self.consumer.rectified is not None else 0):
            weight, constant = squares.fit(self._open(squares.answers(weight, constant)))
        weights[...] = weight.reshape(weights.shape)
        if bias is not None:
            bias[...] = constant
        elif norm is not None:
            state[f"{norm}.running_mean"][...] -= constant

    def _open(self, found: Matrix) -> Matrix:
        """Choose targets [R, O]: what is wanted where the rectifier opens, what was `found` where both are closed."""
        scale, shift = self._normalised()
        wanted, found = self.wanted.values * scale + shift, found * scale + shift
        low, high = np.float32(0), np.float32(self.consumer.rectified)
        target = np.where(wanted > low, wanted, np.minimum(found, low))
        target = np.where(wanted < high, target, np.maximum(found, high))
        return (target - shift) / scale

    def _normalised(self) -> tuple[Matrix, Matrix]:
        """Return scale and shift [O] of the batch norm, one and zero without."""
        state, norm, one = self.network.state, self.consumer.norm, np.ones(self.wanted.values.shape[1], np.float32)
        if norm is None:
            return one, one * 0
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        scale = state.get(f"{norm}.weight", one) / np.sqrt(variance + self._epsilon(norm))
        scale = np.where(np.abs(scale) < 1e-6, np.float32(1e-6), scale)  # a dead channel's constant is all that counts
        return scale, state.get(f"{norm}.bias", one * 0) - mean * scale

    def _epsilon(self, norm: str) -> np.float32:
        mean = f"{norm}.running_mean"
        node = next(node for node in self.network.fitted.forward if mean in node.input)
        return np.float32(next(each.f for each in node.attribute if each.name == "epsilon"))


def unfold_inputs(x: Matrix, reader: NodeProto, positions: Indices) -> Matrix:
    """Gather what an operation multiplies with its weights at some output positions [P] (im2col): a new [N · P, K].

    `x`: input [N, C, H, W] of a convolution, or [N, K] of a linear layer. Columns are in the order of the flattened
    weights.
    """
    if reader.op_type == "Gemm":
        return x.copy()
    own = {each.name: helper.get_attribute_value(each) for each in reader.attribute}
    (above, before, below, after), (down, right) = own["pads"], own["dilations"]
    height, breadth = x.shape[2:]
    (rows, columns), (stride, step) = own["kernel_shape"], own["strides"]
    width = (breadth + before + after - right * (columns - 1) - 1) // step + 1
    top, left = positions // width * stride, positions % width * step
    found = np.empty((len(x), len(positions), x.shape[1], rows, columns), np.float32)
    taps = list(np.ndindex(rows, columns))
    padded = np.zeros((x.shape[1], above + height + below, before + breadth + after), np.float32)
    for image, values in zip(found, x, strict=True):  # a padded copy of all of them would be large
        padded[:, above : above + height, before : before + breadth] = values
        for i, j in taps:
            image[..., i, j] = padded[:, top + down * i, left + right * j].T
    return found.reshape(len(x) * len(positions), -1)


class LeastSquares:
    """Solve ridge regressions on one matrix of inputs for several targets: it is factorised once.

    Memory is min(R, K)²: with fewer rows than columns it is solved in the rows.

    Args:
        x: Inputs [R, K]; their mean is taken from them in place.
        start: Weights [O, K] that the ridge draws to.
        ridge: How hard, as a number of observations of them.
        constant: False where the map is linear, not affine.
    """

    def __init__(self, x: Matrix, start: Matrix, ridge: float, constant: bool = True) -> None:
        self.mean = x.mean(0) if constant else np.zeros(x.shape[1], np.float32)
        self.x = np.subtract(x, self.mean, out=x)
        self.start, self.given = start, self.x @ start.T
        self.constant, self.by_rows = constant, len(x) < x.shape[1]
        gram = (self.x @ self.x.T if self.by_rows else self.x.T @ self.x).astype(np.float64)
        # Beside the ridge what single precision may have lost, and a floor for dead layers.
        gram.flat[:: len(gram) + 1] += np.trace(gram) * (ridge / x.size + 1e-6) + 1e-8 * len(x)
        self.inverses = [(own, inverse.astype(np.float32)) for own, inverse in _factorise(gram)]
        self.factor = gram.astype(np.float32)

    def fit(self, wanted: Matrix) -> tuple[Matrix, Matrix]:
        """Fit weights [O, K] and constants [O] to `wanted` outputs [R, O]."""
        mean = wanted.mean(0) if self.constant else np.zeros(wanted.shape[1], np.float32)
        missing = wanted - mean - self.given
        change = self.x.T @ self._solve(missing) if self.by_rows else self._solve(self.x.T @ missing)
        weight = self.start + change.T
        return weight, mean - weight @ self.mean

    def answers(self, weight: Matrix, constant: Matrix) -> Matrix:
        """Compute what weights [O, K] and constants [O] make of the inputs: [R, O]."""
        found: Matrix = self.x @ weight.T
        return found + (constant + weight @ self.mean)

    def _solve(self, right: Matrix) -> Matrix:
        """Solve gram · y = right for y [M, O]."""
        y = np.array(right)
        for own, inverse in self.inverses:  # factor · y = right, by blocks: numpy has no triangular solver
            y[own] = inverse @ (y[own] - self.factor[own, : own.start] @ y[: own.start])
        for own, inverse in reversed(self.inverses):  # and the factor's transpose
            y[own] = inverse.T @ (y[own] - self.factor[own.stop :, own].T @ y[own.stop :])
        return y


def _factorise(gram: Floats) -> Iterator[tuple[slice, Floats]]:
    """Put the Cholesky factor in the place of a matrix [M, M], and give each block of rows with the inverse of the
    factor's block on the diagonal. Above these blocks nothing changes.

    `numpy.linalg.cholesky` would hold the matrix three times.
    """
    for start in range(0, len(gram), _BLOCK):
        own = slice(start, min(start + _BLOCK, len(gram)))
        column = gram[start:, own] - gram[start:, :start] @ gram[own, :start].T
        inverse = np.linalg.inv(np.linalg.cholesky(column[: own.stop - start]))
        gram[start:, own] = column @ inverse.T
        yield own, inverse
