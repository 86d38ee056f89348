"""Learn from a phone's images and make its submodel: this module does all that needs an engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedcaptor.client import kept_scores, own_look, pending_delivery
from fedcaptor.client.engine import Engine, Submodel
from fedcaptor.client.fallback import answer
from fedcaptor.client.folder import DATABASE
from fedcaptor.client.from_cluster import cluster_submodel, personalise_from_cluster
from fedcaptor.client.images import ImageFeed
from fedcaptor.client.kept_models import holds_full, keep, read_models
from fedcaptor.client.offer import Offer, read_offer
from fedcaptor.client.outcome import Outcome
from fedcaptor.client.own_look import OwnLook
from fedcaptor.client.personal import Personalised, personalise
from fedcaptor.client.usage import UsageLog
from fedcaptor.client.validation import chance_below
from fedcaptor.common import statistics
from fedcaptor.common.arrays import Floats, Images, Tensors
from fedcaptor.common.config import Config
from fedcaptor.common.distances import class_shares
from fedcaptor.common.errors import StateError, WireError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.messages import DeliverRequest, SumRequest
from fedcaptor.common.softmax import softmax
from fedcaptor.common.statistics import MOMENTS, SCORES, FilterScores

logger = logging.getLogger(__name__)

_CONTRADICTION = 0.25  # share of answers in which a sound submodel may differ from the model that it replaces
_DOUBT = 0.5  # part of an escalated image that may show a class which the cluster's submodel cannot name


class _View:
    """Give a statistic what it may ask of the phone in one round."""

    def __init__(self, learner: Learner, round: int) -> None:
        self._learner, self._round = learner, round

    @property
    def groups(self) -> ChannelGroups:
        return self._learner.shipped.groups

    def usage(self) -> npt.NDArray[np.float64]:
        return self._learner.usage(self._round)

    def filter_scores(self) -> FilterScores | None:
        return self._learner.filter_scores(self._round)

    def outcome(self) -> dict[str, float] | None:
        note = self._learner.outcome()
        return None if note is None else note.figures()

    def look(self) -> Floats | None:
        own = self._learner.own_look(self._round)
        return None if own is None else own.look

    def moments(self) -> Floats | None:
        own = self._learner.own_look(self._round, moments=True)
        return None if own is None else own.moments

    def images(self) -> Images:
        return self._learner.feed.use(self._learner.day(self._round))


@dataclass(frozen=True, eq=False)
class Learner:
    """Hold a phone's storage (`folder`), an engine of the base model as it was `shipped`, and the `feed` of its images.

    `day`: the phone's own day in a round of the server; a simulated phone lives a day a round. `replying`: a reply
    waits, which must take the same time for every owner: what was recorded and scored before counts, and no image is
    looked at.
    """

    folder: Path
    shipped: Engine
    feed: ImageFeed
    config: Config
    durable: bool = True
    day: Callable[[int], int] = lambda round: round
    replying: bool = False

    @cached_property
    def engine(self) -> Engine:
        """Run the full model, adapted to how the phone's photos look where that was published."""
        domain = self.config.domain
        return own_look.adapted_engine(self.folder, self.shipped) if domain.enabled or domain.alone else self.shipped

    def vector(self, request: SumRequest, tensors: Tensors) -> npt.NDArray[np.float64]:
        """Return the phone's vector in a sum, before clipping and noise. Raises WireError on unfit tensors."""
        return statistics.asked(request.kind, tensors).vector(_View(self, request.round), tensors)

    def work(self, kind: str) -> None:
        """Do what is due outside replies for a sum of that `kind`, and personalise.

        The day's images are recorded, filters scored. For sums of looks and moments these are measured, and nothing is
        recorded: the sums tell how the base model is to be adapted before it is asked for classes. A delivery that
        comes meanwhile is worked on as well.
        """
        day = self.day(0)
        if kind in own_look.KINDS:
            self.own_look(0, kind == MOMENTS.kind)
        else:
            self.record(day)
        if kind == SCORES.kind and kept_scores.day_of(self.folder) != day:
            found = self._scored(day)
            if found is not None:
                kept_scores.store(self.folder, found, day)
        while pending_delivery.exists(self.folder):
            self.finish()

    def own_look(self, round: int, moments: bool = False) -> OwnLook | None:
        """Measure how the day's photos look, once, and where it is asked for what the base model's batch norms see.

        Returns None without photos, and where a reply waits for what was not measured.
        """
        day = self.day(round)
        if self.replying or not own_look.due(self.folder, day, moments):
            return own_look.read(self.folder)
        images = self.feed.use(day)[: self.config.domain.images]
        return own_look.measure(self.folder, self.shipped, images, day, moments)

    def filter_scores(self, round: int) -> FilterScores | None:
        """Score the filters on the day's images.

        Returns None without images, or where the full model is not on the phone.
        """
        return kept_scores.read(self.folder) if self.replying else self._scored(self.day(round))

    def _scored(self, day: int) -> FilterScores | None:
        images = self.feed.use(day)[: self.config.scores.images]
        if len(images) == 0 or not holds_full(self.folder, self.config.fallback.mode):
            return None
        return self.engine.filter_scores(images)

    def outcome(self) -> Outcome | None:
        """Return the note of the last personalisation, None before the first."""
        return Outcome.read(self.folder)

    def nearest(self, request: DeliverRequest, tensors: Tensors) -> int:
        """Return the cluster whose centroid is nearest. Raises WireError when the offer does not fit the base model."""
        offer = read_offer(request, tensors, self.engine, self.config.delivery)
        if len(offer.centroids) == 0:
            raise WireError("missing_tensor", "there is no centroid to choose")
        return statistics.nearest(self.usage(request.round), offer.centroids)

    def accept(self, request: DeliverRequest, tensors: Tensors) -> None:
        """Keep what the server offers until `finish`. Raises WireError when the offer does not fit the base model."""
        read_offer(request, tensors, self.engine, self.config.delivery)
        pending_delivery.store(self.folder, request, tensors, self.durable)

    def adapt(self, request: DeliverRequest, tensors: Tensors) -> None:
        """Keep an adaptation of the base model. Raises WireError when it is missing or does not fit the base model."""
        offer = read_offer(request, tensors, self.shipped, self.config.delivery)
        if offer.adaptation is None:
            raise WireError("missing_tensor", "looks, look_source and moments are needed")
        own_look.keep_adaptation(self.folder, offer.adaptation, self.shipped.weights_digest)

    def finish(self) -> None:
        """Personalise with the pending delivery, if any, unless habits have not drifted since the last time.

        A delivery that the phone cannot personalise with is given up: the next one takes its place.
        """
        found = pending_delivery.read(self.folder)
        if found is None:
            return
        try:
            self._take(*found)
        except (OSError, StateError):  # of the phone's own files: to be tried again
            raise
        except Exception as error:
            logger.warning("the delivery is given up, the next one takes its place: %r", error)
        pending_delivery.remove(self.folder)

    def _take(self, request: DeliverRequest, tensors: Tensors) -> None:
        day = self.day(request.round)
        self.record(day)
        with self._log() as log:
            marked, drifted, counts = log.marked, log.drifted(self.config.usage.drift), log.counts()
        note = self.outcome()
        if note is not None and note.drifted != drifted:
            note.model_copy(update={"drifted": drifted}).write(self.folder)
        settled = note is not None and marked and not drifted
        if settled or counts.sum() == 0:
            return
        offer = read_offer(request, tensors, self.engine, self.config.delivery)
        me = self
        own = self.config.domain.alone and offer.adaptation is None and offer.submodel is None
        if own and offer.reference is not None and not offer.synthetic:
            self.own_look(request.round)
            alone = own_look.adapted_alone(self.folder, self.shipped, offer.reference, offer.labels)
            me, offer = replace(self), replace(offer, adaptation=alone)  # a new one has its engine anew
        look = None if offer.adaptation is None else own_look.chosen(self.folder, offer.adaptation)
        me._personalise(request, offer.of(self.config.personal.tier, look or 0), counts)
        with self._log() as log:
            log.mark()

    def _personalise(self, request: DeliverRequest, offer: Offer, counts: npt.NDArray[np.float64]) -> None:
        """Personalise from the full model, or from the cluster's submodel where the phone does without the full one."""
        mode, note, day = self.config.fallback.mode, self.outcome(), self.day(request.round)
        use, check, corrections = self.feed.use(day), self.feed.check(day), self.feed.corrections(day)
        # What the log had before this round's images, which are weighed anew.
        memory = counts * max(0.0, 1 - len(use) / max(float(counts.sum()), 1e-9))
        fetches, drifted = (note.base_fetches, note.drifted) if note else (0, False)
        result: Personalised
        if offer.submodel is not None and mode != "kept_full":
            self._require_sound(offer.submodel, np.concatenate([use, check]))
            result = personalise_from_cluster(
                self.engine, offer.submodel, offer, memory, use, check, self.config, day, corrections
            )
        else:
            fetches += not holds_full(self.folder, mode)
            result = personalise(self.engine, offer, memory, use, check, self.config, day, corrections)
        larger = offer.submodel
        if mode == "cluster" and larger is None and result.submodel is not None:
            larger = cluster_submodel(self.engine, offer, result.cluster, use, self.config)
        if offer.submodel is not None:
            result = replace(result, cluster=request.clusters[0])
        kept = larger if mode == "cluster" and result.submodel is not None else None
        keep(self.folder, self.engine, result, kept, fetches, drifted)

    def _require_sound(self, delivered: Submodel, images: Images) -> None:
        """Raise WireError for a delivered submodel that contradicts what the phone answers with so far.

        That is the full model, or else the present submodel where it is sure: the file is not its own judge.
        """
        mode = self.config.fallback.mode
        if holds_full(self.folder, mode):
            labels = self.engine.scores(images).argmax(1)
        else:
            given = answer(self.engine, read_models(self.folder, self.engine, mode), self.config.fallback, images)
            labels = np.where(given.escalated, -1, given.labels)
        judged = np.isin(labels, delivered.classes)
        wrong, seen = int((delivered.predict(images[judged]) != labels[judged]).sum()), int(judged.sum())
        if chance_below(_CONTRADICTION, wrong, seen) < 0.5:
            raise WireError("wrong_digest", f"the submodel contradicts this phone's on {wrong} of {seen} images")

    def _log(self) -> UsageLog:
        self.folder.mkdir(parents=True, exist_ok=True)
        return UsageLog(
            self.folder / DATABASE, self.engine.groups.classes, self.config.usage.half_life, durable=self.durable
        )

    def usage(self, round: int) -> npt.NDArray[np.float64]:
        """Return the class usage [C] with the day's images; all zeros for a phone that saw nothing.

        Raises StateError where a reply waits and no image was ever looked at.
        """
        if not self.replying:
            self.record(self.day(round))
        with self._log() as log:
            if self.replying and log.last_day < 0:
                raise StateError("the phone has not looked at its images yet: raise delivery.answer_seconds, or wait")
            return log.distribution() if log.counts().sum() > 0 else np.zeros(self.engine.groups.classes)

    def record(self, day: int) -> None:
        """Record the images of a day, once."""
        with self._log() as log:
            if log.last_day == day:
                return
            corrections = self.feed.corrections(day)
            shares, labels = self._seen(day, log.counts(), corrections)
            log.record_shares(shares, day)
            for predicted, corrected in zip(labels, corrections, strict=True):
                if corrected >= 0 and corrected != predicted:
                    log.correct(int(predicted), int(corrected))

    def _seen(
        self, day: int, counts: npt.NDArray[np.float64], corrections: npt.NDArray[np.int16]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Estimate the classes that a day's images show [N, C], and return the answers that they got [N].

        Where the phone has the full model, its probabilities count. Otherwise the phone's own answers do; then of an
        escalated image the larger model's answer counts for a part, and the classes that no model of the phone serves
        share the rest, or all where no model answered. A correction by the owner counts whole.
        """
        if holds_full(self.folder, self.config.fallback.mode):
            scores = self.engine.scores(self.feed.use(day))
            memory = counts * min(1.0, len(scores) / max(float(counts.sum()), 1.0))
            return class_shares(softmax(scores), memory), scores.argmax(1)
        models = read_models(self.folder, self.engine, self.config.fallback.mode)
        given = answer(self.engine, models, self.config.fallback, self.feed.use(day))
        labels = np.where(given.labels < 0, corrections, given.labels)
        unserved = np.ones(len(counts))
        if len(models.served) < len(counts):
            unserved[models.served] = 0
        unknown = np.where(labels < 0, 1.0, _DOUBT * (given.escalated & (corrections < 0)))[:, None]
        shares = (1 - unknown) * np.eye(len(counts))[labels] + unknown * unserved / unserved.sum()
        return shares, labels
