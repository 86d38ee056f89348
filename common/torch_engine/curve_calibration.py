"""Make pruning curves comparable between layers: scale what a curve predicts to what pruning its layer alone does.

A curve takes errors at different map positions for independent. They are not: early layers, with many positions, seem
ten times too cheap, and others are off in their own way, much alike for all sets of classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedcaptor.common.arrays import Indices
from fedcaptor.common.groups import Group
from fedcaptor.common.selection import PruningCurve, ridge_of
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.evidence import Rows, covariance_of, hooks
from fedcaptor.common.torch_engine.forward import logits
from fedcaptor.common.torch_engine.network import channels_back, channels_first

IMAGES = 50  # enough to measure on: a sum over them, of which the root is taken
FOLDS = 5  # at most one image in so many is measured on, so that enough are left to fit on
KEPT = 4  # one channel in so many is kept
POWER = 0.5  # the layers behind make good a part of the error; half way, in the logarithm, did best


def calibrate_curves(
    base: BaseModel, classes: Indices, x: torch.Tensor, rows: Rows, curves: Mapping[str, PruningCurve]
) -> dict[str, PruningCurve]:
    """Scale each curve's costs by what pruning its group alone changes in the target classes' logits.

    Args:
        base: The full model.
        classes: Target classes.
        x: Normalised images [N, C, H, W]; some are measured on, the others fitted on.
        rows: Channels that were observed in these images.
        curves: Pruning curve of each group.
    """
    step = max(FOLDS, len(x) // IMAGES)
    measured = np.arange(len(x)) % step == 0
    # Not on images that are fitted on: where a layer is wider than these are many, any channels reproduce all others.
    fitted = ~measured if len(x) > 1 else measured
    some = x[torch.from_numpy(measured)]
    full = logits(base.module, some)[:, classes]
    result = {}
    for name, curve in curves.items():
        kept = curve.kept(-(-len(curve.order) // KEPT))
        predicted = float(curve.cost[: len(curve.order) - len(kept)].sum())
        change = _without(base.module, base.groups.by_name[name], kept, rows, fitted, some)[:, classes] - full
        measured_loss = float(np.square(change - change.mean(1, keepdims=True)).sum(1).mean())
        factor = (measured_loss / predicted) ** POWER if measured_loss > 0 and predicted > 0 else 1.0
        result[name] = PruningCurve(curve.order, curve.cost * factor)
    return result


def _without(
    module: nn.Module, group: Group, kept: Indices, rows: Rows, fitted: npt.NDArray[np.bool_], x: torch.Tensor
) -> npt.NDArray[np.float32]:
    """Compute logits when every consumer reads the group's channels as linear reconstructions from the `kept` ones.

    Reconstructions are fitted on those of the observed images that are `fitted`.
    """
    modules = dict(module.named_modules())
    handles = []
    for consumer in group.consumers:
        observed = rows[group.name, consumer.layer].reshape(len(fitted), -1, group.channels)[fitted]
        matrix, constant = _restored(observed.reshape(-1, group.channels), kept)
        first, last = consumer.offset, consumer.offset + group.channels * consumer.taps

        def restore(
            reader: nn.Module,
            inputs: tuple[torch.Tensor, ...],
            matrix: torch.Tensor = matrix,
            constant: torch.Tensor = constant,
            part: slice = slice(first, last),
        ) -> torch.Tensor:
            seen = channels_first(inputs[0], reader).clone()
            maps = seen[:, part].reshape(len(seen), len(constant), -1)
            seen[:, part] = (matrix @ maps[:, kept] + constant[:, None]).reshape(seen[:, part].shape)
            return channels_back(seen, reader)

        handles.append(modules[consumer.layer].register_forward_pre_hook(restore))
    with hooks(handles):
        return logits(module, x)


def _restored(rows: npt.NDArray[np.float32], kept: Indices) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit A [C, K] and b [C] with x ≈ A·x_kept + b over the observations [R, C]."""
    mean = rows.mean(0)
    covariance = covariance_of(rows)
    within = covariance[np.ix_(kept, kept)] + ridge_of(covariance, 0.01) * np.eye(len(kept))
    matrix = np.linalg.solve(within, covariance[kept]).T.astype(np.float32)
    matrix[kept] = np.eye(len(kept), dtype=np.float32)
    return torch.from_numpy(matrix), torch.from_numpy(mean - matrix @ mean[kept])
