"""Keep a day's filter scores, made outside a reply, until a sum asks for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from fedcaptor.client import tensor_file
from fedcaptor.client.folder import SCORES_FILE
from fedcaptor.client.tensor_file import DAY, tensors_of
from fedcaptor.common.files import write_whole
from fedcaptor.common.statistics import FilterScores


def store(folder: Path, scores: FilterScores, day: int) -> None:
    """Store the scores of a day in place of earlier ones."""
    arrays = {name: np.ascontiguousarray(value) for name, value in scores._asdict().items()}
    write_whole(folder / SCORES_FILE, save(arrays, {DAY: str(day)}), private=True)


def day_of(folder: Path) -> int:
    """Return the day of the stored scores, -1 where there are none that can be read."""
    return tensor_file.day_of(folder / SCORES_FILE)


def read(folder: Path) -> FilterScores | None:
    """Return the stored scores, None where there are none that can be read."""
    tensors = tensors_of(folder / SCORES_FILE)
    return FilterScores(**tensors) if tensors.keys() == set(FilterScores._fields) else None
