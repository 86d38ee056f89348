"""Learn from a phone's images and make its submodel: this module does all that needs an engine."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedcaptor.client import pending_delivery
from fedcaptor.client.engine import Engine
from fedcaptor.client.fallback import answer
from fedcaptor.client.folder import DATABASE
from fedcaptor.client.from_cluster import cluster_submodel, personalise_from_cluster
from fedcaptor.client.images import ImageFeed
from fedcaptor.client.kept_models import holds_full, keep, read_models
from fedcaptor.client.offer import Offer, read_offer
from fedcaptor.client.outcome import Outcome
from fedcaptor.client.personal import Personalised, personalise
from fedcaptor.client.usage import UsageLog
from fedcaptor.common import statistics
from fedcaptor.common.arrays import Images, Tensors
from fedcaptor.common.config import Config
from fedcaptor.common.distances import class_shares
from fedcaptor.common.errors import WireError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.messages import DeliverRequest, SumRequest
from fedcaptor.common.softmax import softmax
from fedcaptor.common.statistics import FilterScores

logger = logging.getLogger(__name__)

_DOUBT = 0.5  # part of an escalated image that may show a class which the cluster's submodel cannot name


class _View:
    """Give a statistic what it may ask of the phone in one round, whose images are recorded first."""

    def __init__(self, learner: Learner, round: int) -> None:
        self._learner, self._round, self._usage = learner, round, learner.usage(round)

    @property
    def groups(self) -> ChannelGroups:
        return self._learner.engine.groups

    def usage(self) -> npt.NDArray[np.float64]:
        return self._usage

    def filter_scores(self) -> FilterScores | None:
        return self._learner.filter_scores(self._round)

    def outcome(self) -> dict[str, float] | None:
        note = self._learner.outcome()
        return None if note is None else note.figures()

    def images(self) -> Images:
        return self._learner.feed.use(self._round)


@dataclass(frozen=True, eq=False)
class Learner:
    """Hold a phone's storage (`folder`), the `engine` that runs the full model, and the `feed` of its images."""

    folder: Path
    engine: Engine
    feed: ImageFeed
    config: Config
    durable: bool = True

    def vector(self, request: SumRequest, tensors: Tensors) -> npt.NDArray[np.float64]:
        """Return the phone's vector in a sum, before clipping and noise. Raises WireError on tensors that do not fit.

        The personal step of a pending delivery is done first.
        """
        try:
            self.finish()
        except Exception as error:
            logger.warning("not personalised yet: %r", error)
        return statistics.asked(request.kind, tensors).vector(_View(self, request.round), tensors)

    def filter_scores(self, round: int) -> FilterScores | None:
        """Score the filters on this round's images.

        Returns None without images, or where the full model is not on the phone.
        """
        images = self.feed.use(round)[: self.config.scores.images]
        if len(images) == 0 or not holds_full(self.folder, self.config.fallback.mode):
            return None
        return self.engine.filter_scores(images)

    def outcome(self) -> Outcome | None:
        """Return the note of the last personalisation, None before the first."""
        return Outcome.read(self.folder)

    def nearest(self, request: DeliverRequest, tensors: Tensors) -> int:
        """Return the cluster whose centroid is nearest. Raises WireError when the offer does not fit the base model."""
        offer = read_offer(request, tensors, self.engine, self.config.personal.tier)
        if len(offer.centroids) == 0:
            raise WireError("missing_tensor", "there is no centroid to choose")
        return statistics.nearest(self.usage(request.round), offer.centroids)

    def accept(self, request: DeliverRequest, tensors: Tensors) -> None:
        """Keep what the server offers until `finish`. Raises WireError when the offer does not fit the base model."""
        read_offer(request, tensors, self.engine, self.config.personal.tier)
        pending_delivery.store(self.folder, request, tensors, self.durable)

    def finish(self) -> None:
        """Personalise with the pending delivery, if any, unless habits have not drifted since the last time."""
        found = pending_delivery.read(self.folder)
        if found is None:
            return
        request, tensors = found
        self.usage(request.round)
        with self._log() as log:
            settled = self.outcome() is not None and log.marked and not log.drifted(self.config.usage.drift)
            counts = log.counts()
        if not settled and counts.sum() > 0:
            offer = read_offer(request, tensors, self.engine, self.config.personal.tier)
            self._personalise(request, offer, counts)
            with self._log() as log:
                log.mark()
        pending_delivery.remove(self.folder)

    def _personalise(self, request: DeliverRequest, offer: Offer, counts: npt.NDArray[np.float64]) -> None:
        """Personalise from the full model, or from the cluster's submodel where the phone does without the full one."""
        mode, note = self.config.fallback.mode, self.outcome()
        use, check = self.feed.use(request.round), self.feed.check(request.round)
        corrections = self.feed.corrections(request.round)
        # What the log had before this round's images, which are weighed anew.
        memory = counts * max(0.0, 1 - len(use) / max(float(counts.sum()), 1e-9))
        fetches = note.base_fetches if note else 0
        result: Personalised
        if offer.submodel is not None and mode != "kept_full":
            result = personalise_from_cluster(
                self.engine, offer.submodel, offer, memory, use, check, self.config, request.round, corrections
            )
        else:
            fetches += not holds_full(self.folder, mode)
            result = personalise(self.engine, offer, memory, use, check, self.config, request.round, corrections)
        larger = offer.submodel
        if mode == "cluster" and larger is None and result.submodel is not None:
            larger = cluster_submodel(self.engine, offer, result.cluster, use, self.config)
        if offer.submodel is not None:
            result = replace(result, cluster=request.clusters[0])
        kept = larger if mode == "cluster" and result.submodel is not None else None
        keep(self.folder, self.engine, result, kept, fetches)

    def _log(self) -> UsageLog:
        self.folder.mkdir(parents=True, exist_ok=True)
        return UsageLog(
            self.folder / DATABASE, self.engine.groups.classes, self.config.usage.half_life, durable=self.durable
        )

    def usage(self, round: int) -> npt.NDArray[np.float64]:
        """Record this round's images once and return the class usage [C]; all zeros for a phone that saw nothing."""
        with self._log() as log:
            if log.last_day < round:
                corrections = self.feed.corrections(round)
                shares, labels = self._seen(round, log.counts(), corrections)
                log.record_shares(shares, round)
                for predicted, corrected in zip(labels, corrections, strict=True):
                    if corrected >= 0 and corrected != predicted:
                        log.correct(int(predicted), int(corrected))
            return log.distribution() if log.counts().sum() > 0 else np.zeros(self.engine.groups.classes)

    def _seen(
        self, round: int, counts: npt.NDArray[np.float64], corrections: npt.NDArray[np.int16]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Estimate the classes that this round's images show [N, C], and return the answers that they got [N].

        Where the phone has the full model, its probabilities count. Otherwise the phone's own answers do; then of an
        escalated image the larger model's answer counts for a part, and the classes that no model of the phone serves
        share the rest, or all where no model answered. A correction by the owner counts whole.
        """
        if holds_full(self.folder, self.config.fallback.mode):
            scores = self.engine.scores(self.feed.use(round))
            memory = counts * min(1.0, len(scores) / max(float(counts.sum()), 1.0))
            return class_shares(softmax(scores), memory), scores.argmax(1)
        models = read_models(self.folder, self.engine, self.config.fallback.mode)
        given = answer(self.engine, models, self.config.fallback, self.feed.use(round))
        labels = np.where(given.labels < 0, corrections, given.labels)
        unserved = np.ones(len(counts))
        if len(models.served) < len(counts):
            unserved[models.served] = 0
        unknown = np.where(labels < 0, 1.0, _DOUBT * (given.escalated & (corrections < 0)))[:, None]
        shares = (1 - unknown) * np.eye(len(counts))[labels] + unknown * unserved / unserved.sum()
        return shares, labels
