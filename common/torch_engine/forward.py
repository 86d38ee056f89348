"""Images into networks and logits out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedcaptor.common.arrays import Images


def normalise(images: Images, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Turn uint8 images [N, H, W, C] into a float tensor [N, C, H, W], (x / 255 - mean) / std by channel."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    shape = (1, -1, 1, 1)
    x = (x - torch.tensor(mean, dtype=torch.float32).view(shape)) / torch.tensor(std, dtype=torch.float32).view(shape)
    return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def logits(model: nn.Module, x: torch.Tensor, batch: int = 64) -> npt.NDArray[np.float32]:
    """Compute logits, float32 [N, classes], of normalised images [N, C, H, W], in batches."""
    return np.concatenate([model(part).numpy() for part in x.split(batch)])
