"""What no phone and no server can know: true accuracy, from the labels that the simulator keeps to itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from client.fallback import answer
from client.phone import read_outcome, read_submodel
from common.config import Config
from common.torch_engine.base import BaseModel, Submodel
from common.torch_engine.forward import logits, normalise

Floats = npt.NDArray[np.float64]
BATCH = 512  # test images as floats at a time


@dataclass(frozen=True, eq=False)
class PhoneFigures:
    """Of one phone. Accuracies on test images of the owner's true classes, NaN without such images.

    `escalated`: share of all test images that the full model answers, NaN without any; `auroc`: area under the ROC of
    telling images inside from those outside the owner's classes by out-of-set score, NaN without both.
    """

    accuracy_full: float
    accuracy_full_limited: float
    accuracy: float
    accuracy_cluster: float
    macs_ratio: float
    parameters_ratio: float
    cluster_macs_ratio: float
    cluster_parameters_ratio: float
    effective_macs_ratio: float
    escalated: float
    accuracy_outside: float
    classes: int
    stored_bytes: int
    auroc: float


class Oracle:
    """Reads `DIR/oracle` and phones' folders; `cluster_models`: each cluster's submodel before the personal step."""

    def __init__(self, directory: Path, config: Config, base: BaseModel, cluster_models: list[Submodel]) -> None:
        self._directory, self._config, self._base, self._clusters = directory, config, base, cluster_models
        oracle = directory / "oracle"
        self._images: Any = np.load(oracle / "images.npy", mmap_mode="r")
        self._labels = np.load(oracle / "labels.npy")
        self._test = np.load(oracle / "test.npy", mmap_mode="r")
        self._shares = np.load(oracle / "shares.npy", mmap_mode="r")
        parts = [self._images[i : i + BATCH] for i in range(0, len(self._images), BATCH)]
        self._full = np.concatenate([logits(base.module, normalise(np.array(p), base.mean, base.std)) for p in parts])

    def phone(self, number: int, round: int) -> PhoneFigures:
        """Figures of phone `number` after round `round` (from 1)."""
        row = self._test[round - 1, number]
        index = row[row >= 0]
        own = np.flatnonzero(self._shares[round - 1, number])
        truth, full = self._labels[index], self._full[index]
        inside = np.isin(truth, own)
        images = np.array(self._images[index])
        folder = self._directory / "phones" / f"{number:06d}"
        note = read_outcome(folder)
        submodel = read_submodel(folder, self._base)
        threshold = note["threshold"] if note and note["threshold"] is not None else -np.inf
        given = answer(self._base, submodel, threshold, self._config.fallback, images)
        at_cluster = self._clusters[note["cluster"]] if note and 0 <= note["cluster"] < len(self._clusters) else None
        macs = submodel.macs_ratio() if submodel else 1.0
        share = _share(given.escalated)
        return PhoneFigures(
            accuracy_full=_share((full.argmax(1) == truth)[inside]),
            accuracy_full_limited=_share((own[full[:, own].argmax(1)] == truth)[inside]),
            accuracy=_share((given.labels == truth)[inside]),
            accuracy_cluster=_share(
                (at_cluster.predict(images) == truth)[inside] if at_cluster else (full.argmax(1) == truth)[inside]
            ),
            macs_ratio=macs,
            parameters_ratio=submodel.parameters_ratio() if submodel else 1.0,
            cluster_macs_ratio=at_cluster.macs_ratio() if at_cluster else 1.0,
            cluster_parameters_ratio=at_cluster.parameters_ratio() if at_cluster else 1.0,
            effective_macs_ratio=macs + share,
            escalated=share,
            accuracy_outside=_share((given.labels == truth)[~inside]),
            classes=len(own),
            stored_bytes=sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) if folder.exists() else 0,
            auroc=_auroc(inside, given.scores),
        )


def _auroc(inside: npt.NDArray[np.bool_], scores: Floats) -> float:
    """NaN where all images are inside, none is, or all score alike (no submodel)."""
    if inside.all() or not inside.any() or np.ptp(scores) == 0:
        return float("nan")
    return float(roc_auc_score(inside, scores))


def _share(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else float("nan")
