"""What no phone and no server can know: true accuracy, from the labels that the simulator keeps to itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from fedcaptor.client.fallback import ABSTAINED, answer
from fedcaptor.client.kept import holds_full, read_models, read_outcome
from fedcaptor.common.arrays import Floats, Indices
from fedcaptor.common.config import Config
from fedcaptor.common.tiers import drawn
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.forward import logits, normalise

Scores = npt.NDArray[np.float32]
BATCH = 512  # test images as floats at a time


@dataclass(frozen=True, eq=False)
class PhoneFigures:
    """Of one phone. Accuracies on test images of the owner's true classes, NaN without such images.

    `escalated`: share of all test images that the submodel is unsure of, NaN without any; the larger model that the
    phone keeps answers these, for its MACs in `effective_macs_ratio`. `accuracy_cluster_limited`: of the cluster's
    submodel, its answers limited to the classes that the phone takes for its owner's. `abstained_outside`: share of the
    images outside that nobody answers. `stored_bytes`: all in the phone's folder; `holds_full`: the full model beside
    it; `base_fetches`: times that it was downloaded again. `auroc`: area under the ROC of telling images inside from
    those outside the owner's classes by out-of-set score (`inside`, `outside`), NaN without both.
    """

    accuracy_full: float
    accuracy_full_limited: float
    accuracy: float
    accuracy_cluster: float
    accuracy_cluster_limited: float
    macs_ratio: float
    parameters_ratio: float
    cluster_macs_ratio: float
    cluster_parameters_ratio: float
    effective_macs_ratio: float
    escalated: float
    accuracy_outside: float
    abstained_outside: float
    classes: int
    stored_bytes: int
    holds_full: bool
    base_fetches: int
    auroc: float
    inside: Scores
    outside: Scores


class Oracle:
    """Reads `DIR/oracle` and phones' folders; `cluster_models`: each cluster's submodel (for each
    tier) before the personal step."""

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
        mode = self._config.fallback.mode
        models = read_models(folder, self._base, mode)
        submodel = models.own
        given = answer(self._base, models, self._config.fallback, images)
        at_cluster = self._of_cluster(note["cluster"], number) if note else None
        of_cluster = limited = full.argmax(1)
        if note and at_cluster:
            of_cluster, limited = _cluster_answers(at_cluster, images, note["classes"])
        macs = submodel.macs_ratio if submodel else 1.0
        share = _share(given.escalated)
        return PhoneFigures(
            accuracy_full=_share((full.argmax(1) == truth)[inside]),
            accuracy_full_limited=_share((own[full[:, own].argmax(1)] == truth)[inside]),
            accuracy=_share((given.labels == truth)[inside]),
            accuracy_cluster=_share((of_cluster == truth)[inside]),
            accuracy_cluster_limited=_share((limited == truth)[inside]),
            macs_ratio=macs,
            parameters_ratio=submodel.parameters_ratio if submodel else 1.0,
            cluster_macs_ratio=at_cluster.macs_ratio if at_cluster else 1.0,
            cluster_parameters_ratio=at_cluster.parameters_ratio if at_cluster else 1.0,
            effective_macs_ratio=macs + share * (models.larger.macs_ratio if models.larger else 0.0),
            escalated=share,
            accuracy_outside=_share((given.labels == truth)[~inside]),
            abstained_outside=_share((given.labels == ABSTAINED)[~inside]),
            classes=len(own),
            stored_bytes=sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) if folder.exists() else 0,
            holds_full=holds_full(folder, mode),
            base_fetches=note["base_fetches"] if note else 0,
            auroc=_auroc(inside, given.scores),
            inside=given.scores[inside].astype(np.float32),
            outside=given.scores[~inside].astype(np.float32),
        )

    def _of_cluster(self, cluster: int, phone: int) -> Submodel | None:
        """The submodel of the cluster for the phone's tier."""
        tiers, tier = self._config.tiers, drawn(self._config, phone)
        number = cluster * max(len(tiers), 1) + (tiers.index(tier) if tier else 0)
        return self._clusters[number] if 0 <= number < len(self._clusters) else None


def _cluster_answers(submodel: Submodel, images: npt.NDArray[np.uint8], own: list[int]) -> tuple[Indices, Indices]:
    """Labels [N] of all its classes, and of those alone that are the phone's own too (of all where it knows none)."""
    scores = submodel.scores(images)
    known = np.isin(submodel.classes, own)
    limited = np.where(known | ~known.any(), scores, -np.inf)
    return submodel.classes[scores.argmax(1)], submodel.classes[limited.argmax(1)]


def _auroc(inside: npt.NDArray[np.bool_], scores: Floats) -> float:
    """NaN where all images are inside, none is, or all score alike (no submodel)."""
    if inside.all() or not inside.any() or np.ptp(scores) == 0:
        return float("nan")
    return float(roc_auc_score(inside, scores))


def _share(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else float("nan")
