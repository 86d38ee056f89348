"""Turn what calibration images show of a network into statistics and pruning curves, whatever engine ran the network.

Observed are channels at each consumer's input, layers' outputs, and the sensitivity of the target classes' logits to
errors there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Array, Floats, Indices
from fedcaptor.common.groups import ChannelGroups, Consumer, Group, State
from fedcaptor.common.plan import Plan
from fedcaptor.common.selection import ConsumerStatistics, PruningCurve, pruning_curve, ridge_of

Rows = dict[tuple[str, str], npt.NDArray[np.float32]]
"""Observations [R, channels] of a group's channels at a consumer's input, by (group, layer)."""

ROWS = 16384
"""Most observations of a layer over all images: more brought little."""

IMAGES = 50  # enough to measure on: a sum over them, of which the root is taken
FOLDS = 5  # at most one image in so many is measured on, so that enough are left to fit on
KEPT = 4  # one channel in so many is kept
POWER = 0.5  # the layers behind make good a part of the error; half way, in the logarithm, did best


@dataclass(frozen=True)
class Sampler:
    """Choose map positions to observe: at most `rows` a layer over all `images`, the same in every model."""

    images: int
    rows: int = ROWS
    seed: int = 0

    def positions(self, layer: str, available: int) -> Indices:
        """Draw sorted positions [P] of the `available` ones of a layer's map."""
        wanted = min(available, max(1, self.rows // max(1, self.images)))
        rng = np.random.default_rng([self.seed, *layer.encode()])
        return np.sort(rng.choice(available, wanted, replace=False))


def consumers(groups: ChannelGroups) -> list[tuple[Group, Consumer]]:
    """List every (group, consumer) pair of the prunable groups, in execution order of the groups."""
    return [(group, consumer) for group in groups.prunable for consumer in group.consumers]


def consuming_layers(groups: ChannelGroups) -> list[str]:
    """List the layers that read prunable groups, each once."""
    return list(dict.fromkeys(consumer.layer for _, consumer in consumers(groups)))


def of_channels(values: Array, group: Group, consumer: Consumer) -> Array:
    """Sum values [N, elements] of what a consumer reads over the elements of each of the group's channels: [N, C]."""
    own = values[:, consumer.offset : consumer.offset + group.channels * consumer.taps]
    return own.reshape(len(values), group.channels, -1).sum(2)


def covariance_of(observed: npt.NDArray[np.float32]) -> Floats:
    """Compute the covariance [C, C] of observations [R, C]; zero for a single one."""
    return np.cov(observed, rowvar=False, bias=True).astype(np.float64).reshape(observed.shape[1], -1)


def statistics_of(
    covariance: Floats, weight: Array, group: Group, consumer: Consumer, sensitivity: Floats
) -> ConsumerStatistics:
    """Join a group's `covariance` [C, C] with a consumer's whole `weight` and its outputs' `sensitivity` [O, O]."""
    part = weight[:, consumer.offset : consumer.offset + group.channels * consumer.taps]
    taps = part.reshape(len(weight), group.channels, -1).astype(np.float64).transpose(2, 1, 0)  # [taps, C, O]
    gram = np.zeros_like(covariance)
    for tap in taps:
        gram += tap @ sensitivity @ tap.T
    return ConsumerStatistics(covariance, gram)


def curves_of(
    groups: ChannelGroups,
    state: State,
    rows: Rows,
    sensitivity: Mapping[str, Floats],
    *,
    start: Plan | None = None,
    importance: Mapping[str, Floats] | None = None,
) -> dict[str, PruningCurve]:
    """Compute each group's pruning curve from observed `rows` and the `sensitivity` [O, O] of layers' outputs.

    Args:
        groups: Channel groups of the network.
        state: Its tensors.
        rows: What was observed at consumers' inputs.
        sensitivity: A Gauss-Newton matrix by consuming layer.
        start: Channels outside this plan are removed first.
        importance: Factors [channels] on the cost of removing a group's channels, by group.
    """
    return {
        group.name: pruning_curve(
            [
                statistics_of(
                    covariance_of(rows[group.name, consumer.layer]),
                    state[f"{consumer.layer}.weight"],
                    group,
                    consumer,
                    sensitivity[consumer.layer],
                )
                for consumer in group.consumers
            ],
            importance=None if importance is None else importance.get(group.name),
            start=None if start is None else start.kept.get(group.name),
        )
        for group in groups.prunable
        if group.consumers
    }


@dataclass(frozen=True, eq=False)
class Restoration:
    """Replace a group's channels, as a consumer reads them, by `matrix` [C, K] · those `kept` [K] + `constant` [C]."""

    consumer: Consumer
    kept: Indices
    matrix: npt.NDArray[np.float32]
    constant: npt.NDArray[np.float32]

    @property
    def part(self) -> slice:
        """Return the elements of the consumer's input that are the group's channels."""
        first = self.consumer.offset
        return slice(first, first + len(self.constant) * self.consumer.taps)


def measured_of(images: int) -> npt.NDArray[np.bool_]:
    """Choose the images [images] that pruning curves are calibrated on."""
    return np.arange(images) % max(FOLDS, images // IMAGES) == 0


def calibrated(
    groups: ChannelGroups,
    classes: Indices,
    images: int,
    rows: Rows,
    curves: Mapping[str, PruningCurve],
    logits: Callable[[list[Restoration]], npt.NDArray[np.float32]],
) -> dict[str, PruningCurve]:
    """Scale each curve's costs by what pruning its group alone changes in the target classes' logits.

    This makes curves comparable between layers. A curve takes errors at different map positions for independent. They
    are not: early layers, with many positions, seem ten times too cheap, and others are off in their own way, much
    alike for all sets of classes.

    Args:
        groups: Channel groups of the network.
        classes: Target classes.
        images: How many images were observed; those of `measured_of` are measured on, the others fitted on.
        rows: Channels that were observed in these images.
        curves: Pruning curve of each group.
        logits: Computes logits [n, classes] of the measured images, with some channels restored.
    """
    measured = measured_of(images)
    # Not on images that are fitted on: where a layer is wider than these are many, any channels reproduce all others.
    fitted = ~measured if images > 1 else measured
    full = logits([])[:, classes]
    result = {}
    for name, curve in curves.items():
        kept = curve.kept(-(-len(curve.order) // KEPT))
        predicted = float(curve.cost[: len(curve.order) - len(kept)].sum())
        change = logits(_restorations(groups.by_name[name], kept, rows, fitted))[:, classes] - full
        measured_loss = float(np.square(change - change.mean(1, keepdims=True)).sum(1).mean())
        factor = (measured_loss / predicted) ** POWER if measured_loss > 0 and predicted > 0 else 1.0
        result[name] = PruningCurve(curve.order, curve.cost * factor)
    return result


def _restorations(group: Group, kept: Indices, rows: Rows, fitted: npt.NDArray[np.bool_]) -> list[Restoration]:
    """Fit every consumer's channels as linear functions of the `kept` ones, on those images that are `fitted`."""
    found = []
    for consumer in group.consumers:
        observed = rows[group.name, consumer.layer].reshape(len(fitted), -1, group.channels)[fitted]
        found.append(Restoration(consumer, kept, *_restored(observed.reshape(-1, group.channels), kept)))
    return found


def _restored(rows: npt.NDArray[np.float32], kept: Indices) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Fit A [C, K] and b [C] with x ≈ A·x_kept + b over the observations [R, C]."""
    mean = rows.mean(0)
    covariance = covariance_of(rows)
    within = covariance[np.ix_(kept, kept)] + ridge_of(covariance, 0.01) * np.eye(len(kept))
    matrix = np.linalg.solve(within, covariance[kept]).T.astype(np.float32)
    matrix[kept] = np.eye(len(kept), dtype=np.float32)
    return matrix, mean - matrix @ mean[kept]
