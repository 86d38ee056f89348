"""The oracle evaluates phones by true labels, which the simulator keeps to itself: no phone and no server has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from fedcaptor.client import own_look
from fedcaptor.client.engine import Engine
from fedcaptor.client.fallback import ABSTAINED, answer
from fedcaptor.client.kept_models import holds_full, read_models
from fedcaptor.client.outcome import Kind, Outcome
from fedcaptor.common.arrays import Floats, Indices
from fedcaptor.common.config import Config
from fedcaptor.common.energy import energy_ratio
from fedcaptor.common.tiers import drawn
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.simulations.looks import drawn as drawn_look
from fedcaptor.simulations.phones import phone_engine
from fedcaptor.simulations.population import images_file

Scores = npt.NDArray[np.float32]
BATCH = 512  # test images as floats at a time
MOST_OF_CLASS = 50  # test images of a class that expected accuracies are measured on


@dataclass(frozen=True, eq=False)
class PhoneFigures:
    """The figures of one phone. Accuracies are on test images of the owner's true classes, NaN without such images.

    `kind` says what the phone has: a "personal" submodel, its "cluster"'s, or the "full" model alone. `own` are the
    owner's true classes, `look` is the number of the look of the photos. `accuracy_shipped` is that of the full model
    as it was shipped, `accuracy_full` as it is adapted to the look. `accuracy_submodel` is that of the submodel which
    answers all images itself, `accuracy` that with escalations; where there is no submodel, the full model's answers
    count in both.
    `escalated` is the share of all test images that the submodel is unsure of, NaN without any. The larger model that
    the phone keeps answers these, and its MACs count in `effective_macs_ratio`. `accuracy_cluster_limited` limits the
    answers of the cluster's submodel to the classes that the phone estimates as its owner's. `abstained_outside` is the
    share of images of other classes that get no answer. `stored_bytes` counts all files in the phone's folder;
    `holds_full` says whether the phone has the full model too, `base_fetches` how often it had to download it again.
    `auroc` is the area under the ROC of the out-of-set score, images of the owner's classes (their scores: `inside`)
    against others (`outside`), NaN without both.
    """

    kind: Kind
    own: tuple[int, ...]
    look: int
    accuracy_shipped: float
    accuracy_full: float
    accuracy_full_limited: float
    accuracy_submodel: float
    accuracy: float
    accuracy_cluster: float
    accuracy_cluster_limited: float
    macs_ratio: float
    parameters_ratio: float
    energy_ratio: float
    cluster_macs_ratio: float
    cluster_parameters_ratio: float
    effective_macs_ratio: float
    escalated: float
    accuracy_outside: float
    abstained_outside: float
    stored_bytes: int
    holds_full: bool
    base_fetches: int
    auroc: float
    inside: Scores
    outside: Scores

    @property
    def classes(self) -> int:
        """How many classes the owner has."""
        return len(self.own)


@dataclass(frozen=True)
class Expected:
    """The accuracies to expect on an owner's further images of own classes; NaN where no test image shows any of them.

    Owners may have one test image or none. So those of all owners are answered, and each class weighs as much as in
    the owner's usage. Named as in `Accuracies`.
    """

    shipped: float
    full: float
    full_limited: float
    submodel: float
    personalised: float


class Oracle:
    """Reads `DIR/oracle` and the phones' folders. `cluster_models` are the clusters' submodels before the personal
    step, for each tier where there are tiers.
    """

    def __init__(self, directory: Path, config: Config, base: BaseModel, cluster_models: list[Submodel]) -> None:
        self._directory, self._config, self._clusters = directory, config, cluster_models
        self._shipped, self._groups = phone_engine(directory, config, base), base.groups
        oracle = directory / "oracle"
        looks = range(max(len(config.looks), 1))
        self._images: list[Any] = [np.load(images_file(oracle, look), mmap_mode="r") for look in looks]
        self._labels = np.load(oracle / "labels.npy")
        self._test = np.load(oracle / "test.npy", mmap_mode="r")
        self._shares = np.load(oracle / "shares.npy", mmap_mode="r")
        self._full: dict[tuple[int, Engine], Scores] = {}
        order = np.argsort(self._labels, kind="stable")
        of_class = np.arange(len(order)) - np.searchsorted(self._labels[order], self._labels[order])
        self._sample = order[of_class < MOST_OF_CLASS]

    def _scores(self, engine: Engine, look: int, index: Indices) -> Scores:
        """The logits of a full model on some test photos of a look."""
        if self._config.domain.alone and engine is not self._shipped:  # a model of this phone alone
            return engine.scores(np.array(self._images[look][index]))
        if (look, engine) not in self._full:
            parts = range(0, len(self._labels), BATCH)
            found = [engine.scores(np.array(self._images[look][i : i + BATCH])) for i in parts]
            self._full[look, engine] = np.concatenate(found)
        return self._full[look, engine][index]

    def _engine(self, number: int) -> Engine:
        """The full model of a phone, as it is adapted to its photos."""
        domain = self._config.domain
        if not (domain.enabled or domain.alone):
            return self._shipped
        return own_look.adapted_engine(self._folder(number), self._shipped)

    def phone(self, number: int, round: int) -> PhoneFigures:
        """Figures of phone `number` after round `round` (from 1)."""
        row = self._test[round - 1, number]
        index = row[row >= 0]
        own = np.flatnonzero(self._shares[round - 1, number])
        look, engine, folder = drawn_look(self._config, number), self._engine(number), self._folder(number)
        truth, full = self._labels[index], self._scores(engine, look, index)
        inside = np.isin(truth, own)
        images = np.array(self._images[look][index])
        note = Outcome.read(folder)
        mode = self._config.fallback.mode
        models = read_models(folder, engine, mode)
        submodel = models.own
        given = answer(engine, models, self._config.fallback, images)
        at_cluster = self._of_cluster(note.cluster, number) if note else None
        of_cluster = limited = full.argmax(1)
        if note and at_cluster:
            of_cluster, limited = _cluster_answers(at_cluster, images, note.classes)
        macs = submodel.macs_ratio if submodel else 1.0
        share = _share(given.escalated)
        return PhoneFigures(
            kind=note.kind if note and submodel else "full",
            own=tuple(own.tolist()),
            look=look,
            accuracy_shipped=_share((self._scores(self._shipped, look, index).argmax(1) == truth)[inside]),
            accuracy_full=_share((full.argmax(1) == truth)[inside]),
            accuracy_full_limited=_share((own[full[:, own].argmax(1)] == truth)[inside]),
            accuracy_submodel=_share((given.alone == truth)[inside]),
            accuracy=_share((given.labels == truth)[inside]),
            accuracy_cluster=_share((of_cluster == truth)[inside]),
            accuracy_cluster_limited=_share((limited == truth)[inside]),
            macs_ratio=macs,
            parameters_ratio=submodel.parameters_ratio if submodel else 1.0,
            energy_ratio=energy_ratio(self._groups, submodel.plan.counts()) if submodel else 1.0,
            cluster_macs_ratio=at_cluster.macs_ratio if at_cluster else 1.0,
            cluster_parameters_ratio=at_cluster.parameters_ratio if at_cluster else 1.0,
            effective_macs_ratio=macs + share * (models.larger.macs_ratio if models.larger else 0.0),
            escalated=share,
            accuracy_outside=_share((given.labels == truth)[~inside]),
            abstained_outside=_share((given.labels == ABSTAINED)[~inside]),
            stored_bytes=sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) if folder.exists() else 0,
            holds_full=holds_full(folder, mode),
            base_fetches=note.base_fetches if note else 0,
            auroc=_auroc(inside, given.scores),
            inside=given.scores[inside].astype(np.float32),
            outside=given.scores[~inside].astype(np.float32),
        )

    def expected(self, number: int, round: int) -> Expected:
        """Expected accuracies of phone `number` after round `round` (from 1)."""
        shares = self._shares[round - 1, number]
        index = self._sample[shares[self._labels[self._sample]] > 0]
        look, engine = drawn_look(self._config, number), self._engine(number)
        own, truth, full = np.flatnonzero(shares), self._labels[index], self._scores(engine, look, index)
        weights = shares[truth] / np.bincount(truth, minlength=len(shares))[truth]
        models = read_models(self._folder(number), engine, self._config.fallback.mode)
        given = answer(engine, models, self._config.fallback, np.array(self._images[look][index]))

        def accuracy(answers: Indices) -> float:
            return float(np.average(answers == truth, weights=weights)) if len(truth) else float("nan")

        return Expected(
            shipped=accuracy(self._scores(self._shipped, look, index).argmax(1)),
            full=accuracy(full.argmax(1)),
            full_limited=accuracy(own[full[:, own].argmax(1)]),
            submodel=accuracy(given.alone),
            personalised=accuracy(given.labels),
        )

    def _folder(self, number: int) -> Path:
        return self._directory / "phones" / f"{number:06d}"

    def _of_cluster(self, cluster: int, phone: int) -> Submodel | None:
        """The submodel of the cluster for the phone's tier and the look that it takes its photos to have."""
        tiers, tier = self._config.tiers, drawn(self._config, phone)
        adaptation = own_look.adaptation_of(self._folder(phone), self._shipped)
        looks = 1 if adaptation is None else len(adaptation.looks)
        look = 0 if adaptation is None else own_look.chosen(self._folder(phone), adaptation) or 0
        number = cluster * max(len(tiers), 1) + (tiers.index(tier) if tier else 0)
        each = len(self._clusters) // looks
        return self._clusters[look * each + number] if 0 <= number < each else None


def _cluster_answers(submodel: Submodel, images: npt.NDArray[np.uint8], own: Sequence[int]) -> tuple[Indices, Indices]:
    """Answers [N] of a cluster's submodel: any of its classes, and limited to `own` classes (if it has one of them)."""
    scores = submodel.scores(images)
    known = np.isin(submodel.classes, own)
    limited = np.where(known | ~known.any(), scores, -np.inf)
    return submodel.classes[scores.argmax(1)], submodel.classes[limited.argmax(1)]


def _auroc(inside: npt.NDArray[np.bool_], scores: Floats) -> float:
    """Area under the ROC; NaN where all images are inside, none is, or all score alike (no submodel)."""
    if inside.all() or not inside.any() or np.ptp(scores) == 0:
        return float("nan")
    return float(roc_auc_score(inside, scores))


def _share(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else float("nan")
