"""Make pruning curves comparable between layers, by logits of a network that reads restored channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedcaptor.common.arrays import Indices
from fedcaptor.common.observations import Restoration, Rows, calibrated, measured_of
from fedcaptor.common.selection import PruningCurve
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.evidence import hooks
from fedcaptor.common.torch_engine.forward import logits
from fedcaptor.common.torch_engine.network import channels_back, channels_first


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
    measured = x[torch.from_numpy(measured_of(len(x)))]
    return calibrated(base.groups, classes, len(x), rows, curves, partial(_restored_logits, base.module, measured))


def _restored_logits(
    module: nn.Module, x: torch.Tensor, restorations: Sequence[Restoration]
) -> npt.NDArray[np.float32]:
    """Compute logits when consumers read restored channels."""
    modules = dict(module.named_modules())
    handles = []
    for restoration in restorations:
        matrix, constant = torch.from_numpy(restoration.matrix), torch.from_numpy(restoration.constant)

        def restore(
            reader: nn.Module,
            inputs: tuple[torch.Tensor, ...],
            matrix: torch.Tensor = matrix,
            constant: torch.Tensor = constant,
            part: slice = restoration.part,
            kept: Indices = restoration.kept,
        ) -> torch.Tensor:
            seen = channels_first(inputs[0], reader).clone()
            maps = seen[:, part].reshape(len(seen), len(constant), -1)
            seen[:, part] = (matrix @ maps[:, kept] + constant[:, None]).reshape(seen[:, part].shape)
            return channels_back(seen, reader)

        handles.append(modules[restoration.consumer.layer].register_forward_pre_hook(restore))
    with hooks(handles):
        return logits(module, x)
