"""Fit the base model's calibration on the server's reference images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import log_softmax

from fedcaptor.common.arrays import Floats, Indices
from fedcaptor.common.calibration import COLDEST, HOTTEST, WIDEST, Calibration

RIDGE = 1.0
"""Weight, in images, of the penalty that holds log temperature and biases near zero where images are few."""


def calibrate(logits: npt.NDArray[np.floating], labels: Indices) -> Calibration:
    """Fit temperature and biases to `logits` [N, C] of images with true `labels` [N], by maximum likelihood.

    Each class counts as one, however many images it has; a class without images keeps the bias zero.
    """
    count, classes = logits.shape
    if count == 0:
        return Calibration.none(classes)
    z, truth = logits.astype(np.float64), np.eye(classes)[labels]
    weights = 1 / truth.sum(0)[labels]
    weights /= weights.sum()

    def loss(parameters: Floats) -> tuple[float, Floats]:
        scaled = z * np.exp(-parameters[0])
        log = log_softmax(scaled + parameters[1:], axis=1)
        slope = weights[:, None] * (np.exp(log) - truth)
        penalty = RIDGE / count
        gradient = np.concatenate([[-(slope * scaled).sum()], slope.sum(0)]) + penalty * parameters
        return float(-weights @ (log * truth).sum(1) + penalty * parameters @ parameters / 2), gradient

    bounds = [(np.log(COLDEST), np.log(HOTTEST)), *[(-WIDEST, WIDEST)] * classes]
    found = minimize(loss, np.zeros(classes + 1), jac=True, bounds=bounds, method="L-BFGS-B").x
    return Calibration(float(np.exp(found[0])), found[1:])
