"""One phone: what it keeps in its folder, what it answers. Knows nothing of Flower."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from client.fallback import answer
from client.from_cluster import cluster_submodel, personalise_from_cluster
from client.images import ImageFeed
from client.kept import holds_full, keep, read_models, read_outcome
from client.ledger import Ledger
from client.local_answer import LocalLedger
from client.masked_sums import MaskedLedger, Side
from client.personal import Offer, Personalised, personalise
from client.usage import UsageLog
from common import statistics
from common.config import Config
from common.distances import class_shares
from common.errors import PlanError, PrivacyError, WireError
from common.groups import ChannelGroups
from common.messages import DeliverRequest, LocalRequest, MaskedRequest, SumRequest, request_digest
from common.plan import Plan
from common.preference import pool
from common.privacy.local import Bits
from common.privacy.noise import system_generator
from common.privacy.sums import SumSpec, encode
from common.secure.messages import MASKING
from common.torch_engine.base import BaseModel, Submodel
from common.torch_engine.forward import logits, normalise, softmax
from common.torch_engine.scores import normalised, taylor_scores
from common.torch_engine.submodel_file import decode
from common.torch_engine.submodel_file import digest as file_digest

Tensors = Mapping[str, npt.NDArray[Any]]
L = TypeVar("L", bound=Ledger)

_DOUBT = 0.5  # part of an escalated image that may show a class which the cluster's submodel cannot name


@dataclass(frozen=True, eq=False)
class Phone:
    """`folder`: the phone's own storage. `seed` None: noise from the operating system's generator; a number: from a
    seeded one, in simulation only.
    """

    folder: Path
    base: BaseModel
    feed: ImageFeed
    config: Config
    seed: tuple[int, ...] | None = None
    durable: bool = True

    def answer(self, request: SumRequest, tensors: Tensors) -> npt.NDArray[np.uint32]:
        """This phone's encoded vector; the same request gets the same bytes and is charged once.

        Raises PrivacyError when the phone declines.
        """
        if self.config.privacy.sums != "plain":
            raise PrivacyError("the sum is not masked: declined")
        spec = request.sum.spec()
        self._check_promises(spec)
        with self._ledger(Ledger) as ledger:
            digest = request_digest(request, tensors)
            return ledger.answer(spec, digest, lambda: self._encoded(request, tensors), request.kind)

    def masked(self, request: MaskedRequest, tensors: Tensors) -> npt.NDArray[np.uint8]:
        """This phone's message in one step of a masked sum; the same request gets the same bytes.

        The sum is charged once, when the masked vector leaves. Raises PrivacyError when the phone declines.
        """
        if self.config.privacy.sums == "local":
            raise PrivacyError("the phone answers by itself alone: declined")
        terms, spec, insisted = request.terms(), request.sum.spec(), self.config.privacy.corrupted
        self._check_promises(spec)
        if terms.corrupted < insisted:
            raise PrivacyError(f"the sum allows for {terms.corrupted} corrupted phones, must be {insisted}: declined")
        with self._ledger(MaskedLedger) as ledger:
            values: list[npt.NDArray[np.uint32]] = []
            if request.step == MASKING and not ledger.masked(terms.digest):  # before the ledger's file is locked
                values.append(self._encoded(request.question(tensors), tensors))
            side = Side(terms, self.folder, self.seed and (*self.seed, request.step))
            secure = tensors["secure"].tobytes()

            def vector() -> npt.NDArray[np.uint32]:
                if not values:
                    raise WireError("wrong_kind", "the vector is asked for under another step's number")
                return values[0]

            reply = ledger.step(spec, request.kind, side, lambda phone_sum: phone_sum.answer(secure, vector))
        return np.frombuffer(reply, np.uint8)

    def local(self, request: LocalRequest) -> Bits:
        """This phone's own randomised answer, packed bits; whoever asks again gets the same, charged once.

        Raises PrivacyError when the phone declines.
        """
        if self.config.privacy.sums != "local":
            raise PrivacyError("the answer would be seen alone: declined")
        spec, classes = request.spec(), self.base.groups.classes
        if spec.classes != classes:
            raise WireError("wrong_shape", f"the question is over {spec.classes} classes, not {classes}")
        with self._ledger(LocalLedger) as ledger:
            drawn = ledger.local(spec, lambda: spec.draw(self._usage(request.round), self._noise(spec.digest)))
        return np.frombuffer(drawn, np.uint8)

    def deliver(self, request: DeliverRequest, tensors: Tensors) -> int | None:
        """Take what the server offers and personalise; returns the cluster when the server asks for it.

        Raises WireError when the offer does not fit this phone's base model, PrivacyError when the server asks for the
        cluster of a phone that was configured to slice for itself.
        """
        if (request.mode == "plan") != (self.config.delivery.mode == "plan"):
            raise PrivacyError(f"delivery is by {request.mode}, must be by {self.config.delivery.mode}: declined")
        offer = read_offer(request, tensors, self.base, self.config.personal.tier)
        usage = self._usage(request.round)
        if request.mode == "choose":
            if len(offer.centroids) == 0:
                raise WireError("missing_tensor", "there is no centroid to choose")
            return statistics.nearest(usage, offer.centroids)
        with self._log() as log:
            settled = read_outcome(self.folder) is not None and log.marked and log.drift() < self.config.usage.drift
            counts = log.counts()
        if settled or counts.sum() == 0:
            return None
        self._personalise(request, offer, counts)
        with self._log() as log:
            log.mark()
        return None

    def _personalise(self, request: DeliverRequest, offer: Offer, counts: npt.NDArray[np.float64]) -> None:
        """From the full model, or from the cluster's submodel where the phone is not to need the full one."""
        mode, note = self.config.fallback.mode, read_outcome(self.folder)
        use, check = self.feed.use(request.round), self.feed.check(request.round)
        fetches = note["base_fetches"] if note else 0
        result: Personalised
        if offer.submodel is not None and mode != "kept_full":
            result = personalise_from_cluster(
                offer.submodel, offer, counts, use, check, self.config, seed=request.round
            )
        else:
            fetches += not holds_full(self.folder, mode)
            result = personalise(self.base, offer, counts, use, check, self.config, seed=request.round)
        larger = offer.submodel
        if mode == "cluster" and larger is None and result.submodel is not None:
            larger = cluster_submodel(self.base, offer, result.cluster, use, self.config)
        if offer.submodel is not None:
            result = replace(result, cluster=request.clusters[0])
        keep(self.folder, result, larger if mode == "cluster" and result.submodel is not None else None, fetches)

    def _check_promises(self, spec: SumSpec) -> None:
        """What this phone was configured to insist on, whatever the server asks."""
        if spec.noise_multiplier == 0 and self.config.privacy.noise:
            raise PrivacyError("the sum has no noise: declined")
        if spec.small_cohorts and not self.config.testing.small_cohorts:
            raise PrivacyError("the sum allows small cohorts: declined")
        if spec.min_cohort < self.config.privacy.min_cohort:
            raise PrivacyError(f"min_cohort is {spec.min_cohort}, must be {self.config.privacy.min_cohort}: declined")

    def _ledger(self, kind: type[L]) -> L:
        self.folder.mkdir(parents=True, exist_ok=True)
        privacy = self.config.privacy
        return kind(
            self.folder / "phone.db",
            durable=self.durable,
            delta=privacy.delta,
            budget_epsilon=privacy.epsilon * (1 + 1e-9) if privacy.noise else math.inf,
            dishonest=privacy.noiseless,
        )

    def _encoded(self, request: SumRequest, tensors: Tensors) -> npt.NDArray[np.uint32]:
        """The vector with this phone's share of the noise."""
        noise = self._noise(request_digest(request, tensors))
        return encode(self._vector(request, tensors), request.sum.spec(), noise)

    def _noise(self, digest: str) -> np.random.Generator:
        if self.seed is None:
            return system_generator()
        return np.random.default_rng([*self.seed, int(digest[:16], 16)])

    def _log(self) -> UsageLog:
        self.folder.mkdir(parents=True, exist_ok=True)
        return UsageLog(
            self.folder / "phone.db", self.base.groups.classes, self.config.usage.half_life, durable=self.durable
        )

    def _usage(self, round: int) -> npt.NDArray[np.float64]:
        """Usage distribution, this round's images recorded once; all zeros for a phone that has seen nothing."""
        with self._log() as log:
            if log.last_day < round:
                corrections = self.feed.corrections(round)
                shares, labels = self._seen(round, log.counts(), corrections)
                log.record_shares(shares, round)
                for predicted, corrected in zip(labels, corrections, strict=True):
                    if corrected >= 0 and corrected != predicted:
                        log.correct(int(predicted), int(corrected))
            return log.distribution() if log.counts().sum() > 0 else np.zeros(self.base.groups.classes)

    def _seen(
        self, round: int, counts: npt.NDArray[np.float64], corrections: npt.NDArray[np.int16]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """What this round's images probably show [N, C], and the answers that they got [N].

        By the full model's probabilities where the phone has it. Otherwise by its own answers. An escalated image is a
        miss: the larger model's answer counts for a part, the classes that no model of the phone serves for the rest,
        for all where nobody answered. A correction settles it.
        """
        if holds_full(self.folder, self.config.fallback.mode):
            scores = self._scores_of(round)
            memory = counts * min(1.0, len(scores) / max(float(counts.sum()), 1.0))
            return class_shares(softmax(scores), memory), scores.argmax(1)
        models = read_models(self.folder, self.base, self.config.fallback.mode)
        given = answer(self.base, models, self.config.fallback, self.feed.use(round))
        labels = np.where(given.labels < 0, corrections, given.labels)
        unserved = np.ones(len(counts))
        if len(models.served) < len(counts):
            unserved[models.served] = 0
        unknown = np.where(labels < 0, 1.0, _DOUBT * (given.escalated & (corrections < 0)))[:, None]
        shares = (1 - unknown) * np.eye(len(counts))[labels] + unknown * unserved / unserved.sum()
        return shares, labels

    def _scores_of(self, round: int) -> npt.NDArray[np.float32]:
        images = self.feed.use(round)
        if len(images) == 0:
            return np.zeros((0, self.base.groups.classes), dtype=np.float32)
        return self.base.scores(images)

    def _vector(self, request: SumRequest, tensors: Tensors) -> npt.NDArray[np.float64]:
        usage, centroids = self._usage(request.round), tensors.get("centroids")
        if centroids is not None and (centroids.ndim != 2 or centroids.shape[1] != len(usage)):
            raise WireError("wrong_shape", f"centroids are {centroids.shape}, expected (K, {len(usage)})")
        if request.kind == "usage":
            if centroids is None:
                return statistics.cooccurrence(usage)
            return statistics.in_block(usage, statistics.nearest(usage, centroids), len(centroids))
        if request.kind == "scores":
            return self._scores(request.round, tensors)
        if centroids is None:
            raise WireError("missing_tensor", "an outcome sum needs centroids")
        return statistics.in_block(self._outcome(), statistics.nearest(usage, centroids), len(centroids))

    def _scores(self, round: int, tensors: Tensors) -> npt.NDArray[np.float64]:
        groups = self.base.groups
        filters = sum(g.channels for g in groups.prunable)
        assignment = tensors.get("pool")
        if assignment is None or assignment.shape != (filters,) or assignment.min(initial=0) < 0:
            raise WireError("wrong_shape", f"pool must be [{filters}] and not negative")
        images = self.feed.use(round)[: self.config.scores.images]
        clusters = int(assignment.max()) + 1
        if clusters > filters:
            raise WireError("oversized", f"pool names {clusters} clusters of {filters} filters")
        if len(images) == 0 or not holds_full(self.folder, self.config.fallback.mode):
            return np.zeros(statistics.scores_length(groups, clusters))
        x = normalise(images, self.base.mean, self.base.std)
        predictions = logits(self.base.module, x).argmax(1)
        scores = taylor_scores(self.base.module, groups, x, predictions)
        pooled = statistics.unit_blocks(pool(normalised(scores), assignment, clusters), assignment, groups)
        return statistics.scores_vector(pooled, scores.presence > 0, len(groups.prunable))

    def _outcome(self) -> npt.NDArray[np.float64]:
        """In the order of `statistics.OUTCOME`; zeros (nobody) before the first personalisation."""
        note = read_outcome(self.folder)
        if note is None:
            return np.zeros(len(statistics.OUTCOME))
        return np.array(
            [
                1.0,
                note["agreement_cluster"],
                note["agreement"],
                note["macs"],
                note["parameters"],
                note["escalated"],
                float(note["kind"] == "personal"),
            ]
        )


def read_offer(request: DeliverRequest, tensors: Tensors, base: BaseModel, tier: str = "") -> Offer:
    """The offer of a delivery to a phone of `tier`, every plan checked against its digest. Raises WireError when it
    does not fit.
    """
    groups: ChannelGroups = base.groups
    plans = []
    for cluster, digest in zip(request.clusters, request.digests, strict=True):
        packed = tensors.get(f"plan.{cluster}")
        if packed is None:
            continue
        try:
            plan = Plan.of(groups, statistics.unpack_plan(packed, groups))
        except (PlanError, ValueError) as error:
            raise WireError("wrong_shape", f"plan {cluster} is no plan of this model: {error}") from None
        file = tensors.get(f"submodel.{cluster}")
        if (plan.digest if file is None else file_digest(plan, file)) != digest:
            raise WireError("wrong_digest", f"plan {cluster} or its submodel is not the one announced")
        plans.append(plan)
    if request.tiers and plans:
        if tier not in request.tiers:
            raise WireError("malformed", "no plan is for this phone's tier")
        plans = plans[request.tiers.index(tier) :: len(request.tiers)]
    many = request.mode != "submodel"
    centroids = tensors.get("centroids", np.zeros((0, groups.classes)))
    reference, labels = tensors.get("reference"), tensors.get("reference_labels")
    if centroids.ndim != 2 or centroids.shape[1] != groups.classes or (many and plans and len(plans) != len(centroids)):
        raise WireError("wrong_shape", f"centroids are {centroids.shape}, {len(plans)} plans, {groups.classes} classes")
    if reference is not None:
        channels, height, width = groups.input_shape
        if reference.ndim != 4 or reference.shape[1:] != (height, width, channels):
            raise WireError("wrong_shape", f"reference images are {reference.shape[1:]}")
        if labels is None or labels.shape != (len(reference),):
            raise WireError("wrong_shape", "reference images and labels differ in number")
    offer = Offer(plans, centroids, reference, labels, tensors.get("preference"))
    return offer if many else _with_submodel(offer, request, tensors, base)


def _with_submodel(offer: Offer, request: DeliverRequest, tensors: Tensors, base: BaseModel) -> Offer:
    """The offer of one cluster, its submodel read from the file. Raises WireError when it does not fit the plan."""
    cluster = request.clusters[0] if len(request.clusters) == 1 else len(offer.centroids)
    file = tensors.get(f"submodel.{cluster}")
    if cluster >= len(offer.centroids) or file is None or len(offer.plans) != 1:
        raise WireError("missing_tensor", "one plan, its submodel and its centroid are needed")
    plan = offer.plans[0]
    submodel = Submodel(base, plan, base.rebuild(decode(file, base.groups, plan)))
    return replace(offer, centroids=offer.centroids[cluster : cluster + 1], submodel=submodel)
