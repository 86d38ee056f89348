"""Judging out-of-set scores and probabilities: arrays in, figures out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from fedcaptor.common.arrays import Indices

Floats = npt.NDArray[Any]

BINS = 15
CAUGHT = (0.8, 0.95)


def inside(z: Floats, target: npt.NDArray[np.bool_]) -> Floats:
    """Return log odds [N] that an image is of a target class, not another, of logits or log probabilities [N, C]."""
    z = np.asarray(z, dtype=np.float64)
    return np.asarray(logsumexp(z[:, target], axis=1) - logsumexp(z[:, ~target], axis=1))


def rejecting(features: Floats, answers: Indices, target: Indices, images: Floats) -> Floats:
    """Return log odds [N] of `images` [N, D] by linear discriminant analysis (Ledoit & Wolf 2004), fitted on
    `features` [R, D] and the full model's `answers` [R] to them: outputs for classes that the submodel does not have.
    """
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(np.asarray(features, np.float64), answers)
    return inside(fitted.predict_log_proba(np.asarray(images, np.float64)), np.isin(fitted.classes_, target))


def told_apart(scores: Floats, own: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return the AUROC of own images [N] against others, higher scores being surer; and the share of own images that
    goes to a larger model at the threshold that sends 80 and 95 % of the others there.
    """
    figures = {"auroc": float(roc_auc_score(own, scores))}
    for caught in CAUGHT:
        threshold = np.quantile(scores[~own], caught, method="inverted_cdf")
        figures[f"escalated_{100 * caught:.0f}"] = float((scores[own] <= threshold).mean())
    return figures


def calibration_error(z: Floats, truth: Indices, bins: int = BINS) -> float:
    """Return the expected calibration error (Guo et al. 2017) of logits z [N, k], right column `truth` [N]: gap between
    confidence and accuracy, mean over images, in bins of equal width.
    """
    probabilities = softmax(np.asarray(z, dtype=np.float64), axis=1)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(number, confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))


def temperature(z: Floats, full: Floats) -> float:
    """Find the divisor of logits z [N, k], in 0.05..20, that brings probabilities closest to those of the full model's
    logits `full` [N, k], in Kullback-Leibler divergence; no labels. Its probabilities and not its bare answers: a
    submodel that gives all of them is fitted best without any doubt left.
    """
    wanted = softmax(np.asarray(full, dtype=np.float64), axis=1)

    def surprise(logarithm: float) -> float:
        return -float((wanted * log_softmax(np.asarray(z, np.float64) / np.exp(logarithm), axis=1)).sum(1).mean())

    return float(np.exp(minimize_scalar(surprise, bounds=(np.log(0.05), np.log(20)), method="bounded").x))
