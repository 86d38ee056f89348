"""Compute the softmax of a classifier's logits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Floats


def softmax(scores: npt.NDArray[np.floating]) -> Floats:
    """Return probabilities float64 [N, classes] of logits [N, classes]; N may be 0.

    `scipy.special.softmax` is not used: it stays in float32, where small probabilities lose half of their digits.
    """
    exponents = np.exp((scores - scores.max(1, keepdims=True, initial=-np.inf)).astype(np.float64))
    return np.asarray(exponents / exponents.sum(1, keepdims=True))
