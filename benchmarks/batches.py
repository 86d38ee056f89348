"""More images than fit into memory as floats, through a network."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Images
from fedcaptor.common.torch_engine.base import BaseModel, Submodel

BATCH = 512


def in_batches(base: BaseModel | Submodel, images: Images) -> npt.NDArray[np.float32]:
    """Return a network's logits [N, classes] of images [N, H, W, C]."""
    return np.concatenate([base.scores(part) for part in batches(images)])


def batches(array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Return the array in parts of at most `BATCH`."""
    return np.array_split(array, -(-len(array) // BATCH))
