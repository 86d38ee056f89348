"""Name the array types that modules have in common."""

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
