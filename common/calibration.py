"""Turn a classifier's logits into likelihoods of its images, so that Bayes' rule holds for any owner's habits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Floats
from fedcaptor.common.errors import DataError

COLDEST, HOTTEST, WIDEST = 0.1, 10.0, 20.0
"""Bounds of the temperature, and of a bias: no network of use needs others."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Correct logits z to z / `temperature` + `bias` [C], which are log-likelihoods up to a constant for each image.

    A network that was trained on uneven classes prefers the frequent ones, and one that was trained long is too sure.
    Bias-corrected temperature scaling takes out both (Alexandari, Kundaje & Shrikumar 2020); it is fitted as if the
    classes were balanced, so that only the owner's usage says which class is likely.
    """

    temperature: float
    bias: Floats

    @classmethod
    def none(cls, classes: int) -> Calibration:
        """Return the one that leaves logits as they are."""
        return cls(1.0, np.zeros(classes))

    @classmethod
    def unpack(cls, packed: npt.NDArray[Any], classes: int) -> Calibration:
        """Read what `packed` wrote. Raises DataError on numbers out of bounds or of another number of classes."""
        if packed.shape != (classes + 1,):
            raise DataError(f"the calibration has shape {packed.shape}, must be {(classes + 1,)}")
        temperature, bias = float(packed[0]), packed[1:].astype(np.float64)
        if not COLDEST <= temperature <= HOTTEST or not np.abs(bias).max() <= WIDEST:
            raise DataError(
                f"the calibration's temperature is {temperature:.3g}, must lie in {COLDEST}..{HOTTEST}, and its biases "
                f"within {WIDEST} of zero"
            )
        return cls(temperature, bias)

    def packed(self) -> npt.NDArray[np.float32]:
        """Return temperature and bias, float32 [C + 1]."""
        return np.concatenate([[self.temperature], self.bias]).astype(np.float32)

    def of(self, classes: npt.NDArray[np.integer]) -> Calibration:
        """Return the calibration of a network that has outputs for `classes` alone."""
        return Calibration(self.temperature, self.bias[classes])

    def likelihoods(self, logits: npt.NDArray[Any]) -> Floats:
        """Return likelihoods [N, C] of images by class, the largest of each image being one."""
        z = logits.astype(np.float64) / self.temperature + self.bias
        return np.asarray(np.exp(z - z.max(1, keepdims=True, initial=-np.inf)))

    def prior_for_logits(self, usage: Floats) -> Floats:
        """Return the prior [C] whose logarithm, added to uncalibrated logits, ranks classes as Bayes' rule does.

        That of `usage` [C], the probability of each class, on calibrated ones: log usage + z / T + b and
        T · (log usage + b) + z have the same order.
        """
        log = self.temperature * (np.log(np.maximum(usage, 1e-9)) + self.bias)
        prior = np.exp(log - log.max())
        return np.asarray(prior / prior.sum())
