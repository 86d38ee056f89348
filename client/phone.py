"""One phone: what it keeps in its folder, what it answers. Knows nothing of Flower."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from client.images import ImageFeed
from client.ledger import Ledger
from client.personal import Offer, Personalised, personalise
from client.usage import UsageLog
from common import statistics
from common.config import Config
from common.distances import class_shares
from common.errors import PlanError, PrivacyError, StateError, WireError
from common.files import replacing
from common.groups import ChannelGroups
from common.messages import DeliverRequest, SumRequest
from common.plan import Plan
from common.preference import pool
from common.privacy.noise import system_generator
from common.privacy.sums import encode
from common.torch_engine.base import BaseModel, Submodel
from common.torch_engine.forward import logits, normalise, softmax
from common.torch_engine.network import load_state, save_state
from common.torch_engine.scores import normalised, taylor_scores

Tensors = Mapping[str, npt.NDArray[Any]]
OUTCOME_FILE = "outcome.json"
SUBMODEL_FILE = "submodel.safetensors"


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

    def answer(self, request: SumRequest, tensors: Tensors, digest: str) -> npt.NDArray[np.uint32]:
        """This phone's encoded vector; the same request gets the same bytes and is charged once.

        Raises PrivacyError when the phone declines.
        """
        spec = request.sum.spec()
        self._check_promises(spec.noise_multiplier, spec.min_cohort, spec.small_cohorts)
        self.folder.mkdir(parents=True, exist_ok=True)
        privacy = self.config.privacy
        with Ledger(
            self.folder / "phone.db",
            durable=self.durable,
            delta=privacy.delta,
            budget_epsilon=privacy.epsilon * (1 + 1e-9) if privacy.noise else math.inf,
            dishonest=privacy.dishonest,
        ) as ledger:
            return ledger.answer(
                spec, digest, lambda: encode(self._vector(request, tensors), spec, self._noise(digest)), request.kind
            )

    def deliver(self, request: DeliverRequest, tensors: Tensors) -> int | None:
        """Take what the server offers and personalise; returns the cluster when the server asks for it.

        Raises WireError when the offer does not fit this phone's base model.
        """
        offer = read_offer(request, tensors, self.base, self.config.personal.tier)
        if request.mode == "choose":
            return statistics.nearest(self._usage(request.round), offer.centroids)
        self._usage(request.round)
        outcome = self.folder / OUTCOME_FILE
        with self._log() as log:
            settled = outcome.exists() and log.drift() < self.config.usage.drift
            counts = log.counts()
        if settled or counts.sum() == 0:
            return None
        result = personalise(
            self.base,
            offer,
            counts,
            self.feed.use(request.round),
            self.feed.check(request.round),
            self.config,
            seed=request.round,
        )
        self._keep(result)
        with self._log() as log:
            log.mark()
        return None

    def _keep(self, result: Personalised) -> None:
        """The submodel first, then the note that names it: a kill in between leaves the old pair or no note."""
        note: dict[str, Any] = {
            "kind": result.kind,
            "classes": result.classes.tolist(),
            "prior": result.prior.tolist(),
            "agreement": result.agreement,
            "agreement_cluster": result.agreement_cluster,
            "threshold": result.threshold if math.isfinite(result.threshold) else None,
            "escalated": result.escalated,
            "cluster": result.cluster,
            "macs": 1.0,
            "parameters": 1.0,
            "plan": None,
        }
        if result.submodel is not None:
            state = {name: tensor.numpy() for name, tensor in result.submodel.module.state_dict().items()}
            save_state(self.folder / SUBMODEL_FILE, state, {})
            note |= {
                "macs": result.submodel.macs_ratio(),
                "parameters": result.submodel.parameters_ratio(),
                "plan": result.submodel.plan.to_json(),
            }
        with replacing(self.folder / OUTCOME_FILE) as temporary:
            temporary.write_text(json.dumps(note))

    def _check_promises(self, noise_multiplier: float, min_cohort: int, small_cohorts: bool) -> None:
        """What this phone was configured to insist on, whatever the server asks."""
        if noise_multiplier == 0 and self.config.privacy.noise:
            raise PrivacyError("the sum has no noise: declined")
        if small_cohorts and not self.config.testing.small_cohorts:
            raise PrivacyError("the sum allows small cohorts: declined")
        if min_cohort < self.config.privacy.min_cohort:
            raise PrivacyError(f"min_cohort is {min_cohort}, must be {self.config.privacy.min_cohort}: declined")

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
                scores = self._scores_of(round)
                counts = log.counts()
                memory = counts * min(1.0, len(scores) / max(float(counts.sum()), 1.0))
                log.record_shares(class_shares(softmax(scores), memory), round)
                for predicted, corrected in zip(scores.argmax(1), self.feed.corrections(round), strict=True):
                    if corrected >= 0 and corrected != predicted:
                        log.correct(int(predicted), int(corrected))
            return log.distribution() if log.counts().sum() > 0 else np.zeros(self.base.groups.classes)

    def _scores_of(self, round: int) -> npt.NDArray[np.float32]:
        images = self.feed.use(round)
        if len(images) == 0:
            return np.zeros((0, self.base.groups.classes), dtype=np.float32)
        return logits(self.base.module, normalise(images, self.base.mean, self.base.std))

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
        images = self.feed.use(round)
        clusters = int(assignment.max()) + 1
        if clusters > filters:
            raise WireError("oversized", f"pool names {clusters} clusters of {filters} filters")
        if len(images) == 0:
            return np.zeros(statistics.scores_length(groups, clusters))
        x = normalise(images, self.base.mean, self.base.std)
        predictions = self._scores_of(round).argmax(1)
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


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """The phone's note of its last personalisation, None before the first."""
    path = folder / OUTCOME_FILE
    if not path.exists():
        return None
    try:
        note: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise StateError(f"{path} is damaged ({error}): delete it, the phone personalises again") from error
    return note


def read_submodel(folder: Path, base: BaseModel) -> Submodel | None:
    """The submodel in a phone's folder, None where the phone keeps the full model."""
    note = read_outcome(folder)
    if note is None or note["plan"] is None:
        return None
    state, _ = load_state(folder / SUBMODEL_FILE)
    return Submodel(base, Plan.from_json(note["plan"], base.groups), base.rebuild(state))


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
        if plan.digest != digest:
            raise WireError("wrong_digest", f"plan {cluster} is not the one announced")
        plans.append(plan)
    if request.tiers and plans:
        if tier not in request.tiers:
            raise WireError("malformed", "no plan is for this phone's tier")
        plans = plans[request.tiers.index(tier) :: len(request.tiers)]
    centroids = tensors.get("centroids", np.zeros((0, groups.classes)))
    reference, labels = tensors.get("reference"), tensors.get("reference_labels")
    if centroids.ndim != 2 or centroids.shape[1] != groups.classes or (plans and len(plans) != len(centroids)):
        raise WireError("wrong_shape", f"centroids are {centroids.shape}, {len(plans)} plans, {groups.classes} classes")
    if reference is not None:
        channels, height, width = groups.input_shape
        if reference.ndim != 4 or reference.shape[1:] != (height, width, channels):
            raise WireError("wrong_shape", f"reference images are {reference.shape[1:]}")
        if labels is None or labels.shape != (len(reference),):
            raise WireError("wrong_shape", "reference images and labels differ in number")
    return Offer(plans, centroids, reference, labels, tensors.get("preference"))
