"""Name the array types that modules have in common, and choose among many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
"""Positions or class labels."""
Images = NDArray[np.uint8 | np.float32]
"""Images [N, height, width, channels]: pixels as uint8, or floats that are normalised already."""
Bits = NDArray[np.uint8]
"""Packed bits, or bytes."""
Tensors = Mapping[str, Array]
"""Arrays by name, as messages carry them."""


def evenly(count: int, most: int) -> Indices:
    """Choose `most` of `count` places, evenly spread, or all where they are fewer."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)
