"""Domain moments: how the inputs of a network's batch norms differ from those that it was trained on.

A batch norm subtracts the mean of each channel and divides by its deviation, both of training images. Photos of another
camera have other ones, and statistics of the photos themselves restore much of the accuracy (Schneider et al., Nado et
al., both 2020). A phone's few classes bias its own statistics; the mean over a fleet of phones has no such bias.

Moments are a vector [2 · channels] over all batch norms in the network's order: of each norm first the shift of each
channel's mean, in deviations of training, then the logarithm of the ratio of its variance to that of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from fedcaptor.common.arrays import Array, Floats
from fedcaptor.common.errors import DataError
from fedcaptor.common.groups import State

_MEAN, _VARIANCE = ".running_mean", ".running_var"
_LEAST = 1e-6  # variance that is added to both sides of a ratio
LARGEST = 10.0
"""Bound of an entry: moments further away are of a channel that is dead in one of the domains."""


def norms(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the channels of each batch norm, by name in the network's order, from the shapes of its tensors."""
    names = (name.removesuffix(_MEAN) for name in shapes if name.endswith(_MEAN))
    return {name: shapes[name + _MEAN][0] for name in names if name + _VARIANCE in shapes}


def length(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of moments of a network, 0 for one without batch norms."""
    return 2 * sum(norms(shapes).values())


def moments_of(trained: State, measured: State) -> Floats:
    """Return the moments [2 · channels] of batch norms with `measured` statistics, as against the `trained` ones."""
    found = []
    for name in _names(trained):
        mean, variance = trained[name + _MEAN].astype(np.float64), trained[name + _VARIANCE] + _LEAST
        found.append((measured[name + _MEAN] - mean) / np.sqrt(variance))
        found.append(np.log((np.maximum(measured[name + _VARIANCE], 0) + _LEAST) / variance))
    return np.clip(np.concatenate(found), -LARGEST, LARGEST) if found else np.zeros(0)


def adapted(trained: State, moments: Array) -> State:
    """Return a network's tensors with the batch norms' statistics moved by moments [2 · channels].

    Raises DataError when there are not as many as the network needs.
    """
    shapes = {name: tensor.shape for name, tensor in trained.items()}
    if moments.shape != (length(shapes),):
        raise DataError(f"moments are {moments.shape}, must be {(length(shapes),)}: use those of this network")
    state = dict(trained)
    for name, shift, ratio in parts(shapes, moments):
        variance = trained[name + _VARIANCE] + _LEAST
        state[name + _MEAN] = (trained[name + _MEAN] + shift * np.sqrt(variance)).astype(np.float32)
        state[name + _VARIANCE] = np.maximum(variance * np.exp(ratio) - _LEAST, 0).astype(np.float32)
    return state


def parts(shapes: Mapping[str, tuple[int, ...]], moments: Array) -> Iterator[tuple[str, Array, Array]]:
    """Yield each norm's name with views of its means' shifts [c] and its variances' logarithms [c] among moments."""
    at = 0
    for name, channels in norms(shapes).items():
        yield name, moments[at : at + channels], moments[at + channels : at + 2 * channels]
        at += 2 * channels


def shrunk(shapes: Mapping[str, tuple[int, ...]], moments: Floats, variance: float) -> Floats:
    """Return noisy moments with each norm's means and variances scaled by signal over signal plus noise.

    `variance`: of the noise in every entry. What is left is the positive part of James and Stein's estimate.
    """
    found = moments.copy()
    for _, *pair in parts(shapes, found):
        for values in pair:
            energy = float(np.square(values).sum())
            values *= max(0.0, 1 - len(values) * variance / energy) if energy > 0 else 0.0
    return found


def _names(state: State) -> list[str]:
    return list(norms({name: tensor.shape for name, tensor in state.items()}))
