"""Keep a day's filter scores, made outside a reply, until a sum asks for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedcaptor.client.folder import SCORES_FILE
from fedcaptor.common.files import write_whole
from fedcaptor.common.statistics import FilterScores

_DAY = "day"  # metadata key


def store(folder: Path, scores: FilterScores, day: int) -> None:
    """Store the scores of a day in place of earlier ones."""
    arrays = {name: np.ascontiguousarray(value) for name, value in scores._asdict().items()}
    write_whole(folder / SCORES_FILE, save(arrays, {_DAY: str(day)}), private=True)


def day_of(folder: Path) -> int:
    """Return the day of the stored scores, -1 where there are none that can be read."""
    try:
        with safe_open(folder / SCORES_FILE, framework="np") as file:
            return int((file.metadata() or {})[_DAY])
    except (SafetensorError, OSError, ValueError, KeyError):
        return -1


def read(folder: Path) -> FilterScores | None:
    """Return the stored scores, None where there are none that can be read."""
    try:
        with safe_open(folder / SCORES_FILE, framework="np") as file:
            return FilterScores(file.get_tensor("scores"), file.get_tensor("present"))
    except (SafetensorError, OSError):
        return None
