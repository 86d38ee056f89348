"""Images into networks and logits out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedcaptor.common.arrays import Images


def normalise(images: Images, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Turn images [N, H, W, C] into a float tensor [N, C, H, W]: uint8 as (x / 255 - mean) / std by channel; floats are
    normalised already and change their layout alone.
    """
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    if not x.is_floating_point():
        x = standardise(x.float() / 255, mean, std)
    return x.contiguous(memory_format=torch.channels_last)


def standardise(x: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(x - mean) / std by channel of float images [N, C, H, W] in [0, 1]."""
    shape = (1, -1, 1, 1)
    shift, scale = (torch.tensor(values, dtype=torch.float32).view(shape) for values in (mean, std))
    return (x - shift) / scale


@torch.no_grad()
def logits(model: nn.Module, x: torch.Tensor, batch: int = 64) -> npt.NDArray[np.float32]:
    """Compute logits, float32 [N, classes], of normalised images [N, C, H, W], in batches."""
    return np.concatenate([model(part).numpy() for part in x.split(batch)])
