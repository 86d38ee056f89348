"""Read what a delivery holds for one phone, checked against its digests and the phone's base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedcaptor.client.engine import Engine, Submodel
from fedcaptor.common.adaptation import Adaptation
from fedcaptor.common.arrays import Array, Images, Indices, Tensors
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.config import Delivery as DeliveryBounds
from fedcaptor.common.data import mosaic
from fedcaptor.common.errors import DataError, PlanError, WireError
from fedcaptor.common.messages import DeliverRequest
from fedcaptor.common.plan import Plan
from fedcaptor.common.plan_bits import unpack_plan
from fedcaptor.common.submodel_file import decode
from fedcaptor.common.submodel_file import digest as file_digest

_ROUNDING = 0.05  # of the sum of a centroid's shares, which are sent rounded


@dataclass(frozen=True, eq=False)
class Offer:
    """Hold what every phone receives alike: a plan and a usage centroid per cluster, the server's own reference images
    [R, H, W, C] with labels [R], the filter preference [F, C] and the base model's calibration (None: unknown). Where a
    phone fetches its cluster's `submodel`, plan and centroid are those of this cluster alone. With `tiers`, names of
    device tiers, there is a plan per cluster and tier. With an `adaptation` there is one of each look too, and a
    calibration of each. `mixed`: the centroids are topics, of which an owner's usage is a mixture. `synthetic`: the
    reference images are no photos.
    """

    plans: Sequence[Plan] = ()
    centroids: npt.NDArray[Any] = field(default_factory=lambda: np.zeros((0, 0)))
    reference: Images | None = None
    labels: Indices | None = None
    preference: npt.NDArray[Any] | None = None
    calibration: Calibration | None = None
    submodel: Submodel | None = None
    tiers: tuple[str, ...] = ()
    adaptation: Adaptation | None = None
    calibrations: Sequence[Calibration] = ()
    mixed: bool = False
    synthetic: bool = False

    def of(self, tier: str, look: int = 0) -> Offer:
        """Return what a phone takes that is of one device tier, and whose photos have one of the looks: reference
        images are re-rendered in it. Raises WireError where there is no plan for the tier.
        """
        tiers, looks = self.tiers or ("",), self.looks
        if self.tiers and self.plans and tier not in tiers:
            raise WireError("malformed", "no plan is for this phone's tier")
        each, place = len(self.plans) // looks, tiers.index(tier) if tier in tiers else 0
        plans = self.plans[look * each : (look + 1) * each][place :: len(tiers)]
        taken = replace(self, plans=plans, tiers=(), adaptation=None)
        if self.adaptation is None:
            return taken
        reference = None if self.reference is None else self.adaptation.render(self.reference, look)
        return replace(taken, reference=reference, calibration=self.calibrations[look] if self.calibrations else None)

    @property
    def looks(self) -> int:
        """Return how many looks there are plans for."""
        return 1 if self.adaptation is None else len(self.adaptation.looks)


def read_offer(request: DeliverRequest, tensors: Tensors, engine: Engine, bounds: DeliveryBounds) -> Offer:
    """Read the offer of a delivery, every plan checked against its digest and everything against the phone's `bounds`.

    Whether an offer is refused depends on nothing that tells phones of one base model apart, such as their tier. Raises
    WireError when it does not fit.
    """
    groups = engine.groups
    _require_within("tensors", sum(tensor.nbytes for tensor in tensors.values()), bounds.max_bytes, "max_bytes")
    if request.weights != engine.weights_digest:
        raise WireError(
            "wrong_weights",
            f"the server's base model has the weights {request.weights[:12]}, this phone has "
            f"{engine.weights_digest[:12]}: install the weights that the server uses",
        )
    plans = []
    for cluster, digest in zip(request.clusters, request.digests, strict=True):
        packed = tensors.get(f"plan.{cluster}")
        if packed is None:
            continue
        try:
            plan = Plan.of(groups, unpack_plan(packed, groups))
        except (PlanError, ValueError) as error:
            raise WireError("wrong_shape", f"plan {cluster} is no plan of this model: {error}") from None
        file = tensors.get(f"submodel.{cluster}")
        if (plan.digest if file is None else file_digest(plan, file)) != digest:
            raise WireError("wrong_digest", f"plan {cluster} or its submodel is not the one announced")
        plans.append(plan)
    many, tiers = request.mode != "submodel", request.tiers or ("",)
    topics = tensors.get("topics")
    centroids = tensors.get("centroids", np.zeros((0, groups.classes))) if topics is None else topics
    file, labels = tensors.get("reference"), tensors.get("reference_labels")
    adaptation = Adaptation.of(tensors, groups)
    looks = 1 if adaptation is None else len(adaptation.looks)
    expected = len(centroids) * len(tiers) * looks
    if centroids.ndim != 2 or centroids.shape[1] != groups.classes or (many and plans and len(plans) != expected):
        raise WireError("wrong_shape", f"centroids are {centroids.shape}, {len(plans)} plans, {groups.classes} classes")
    if len(centroids) and not (centroids.min() >= 0 and (np.abs(centroids.sum(1) - 1) <= _ROUNDING).all()):
        raise WireError("wrong_shape", "the shares of a centroid are not positive, or do not sum to one")
    preference, filters = tensors.get("preference"), sum(group.channels for group in groups.prunable)
    if preference is not None and preference.shape != (filters, groups.classes):
        raise WireError("wrong_shape", f"the preference is {preference.shape}, must be {(filters, groups.classes)}")
    if (file is None) != (labels is None) or (labels is not None and not 0 < labels.size == len(labels)):
        raise WireError("wrong_shape", "reference images and their labels come together, at least one")
    if labels is not None and not (labels.min() >= 0 and labels.max() < groups.classes):
        raise WireError("wrong_shape", f"reference labels are {labels.min()}..{labels.max()}, {groups.classes} classes")
    if labels is not None:
        _require_within("reference images", len(labels), bounds.max_images, "max_images")
        _require_within("of one class", int(np.bincount(labels).max()), bounds.max_class_images, "max_class_images")
    packed = tensors.get("calibration")
    try:
        rows: Sequence[Array] = () if packed is None else _rows(packed, looks)
        calibrations = [Calibration.unpack(row, groups.classes) for row in rows]
        reference = None
        if file is not None and labels is not None:
            reference = mosaic.decode(file, len(labels), groups.input_shape)
    except DataError as error:
        raise WireError("wrong_shape", str(error)) from None
    offer = Offer(
        plans,
        centroids,
        reference,
        labels,
        preference,
        calibrations[0] if calibrations else None,
        tiers=request.tiers,
        adaptation=adaptation,
        calibrations=calibrations,
        mixed=topics is not None,
        synthetic=request.synthetic,
    )
    return offer if many else _with_submodel(offer, request, tensors, engine)


def _rows(packed: Array, looks: int) -> Sequence[Array]:
    """Return a calibration for each look [L, …]; without looks there is one. Raises WireError for another number."""
    rows = packed[None] if packed.ndim == 1 else packed
    if len(rows) != looks:
        raise WireError("wrong_shape", f"{len(rows)} calibrations are given for {looks} looks")
    return list(rows)


def _require_within(what: str, found: int, most: int, key: str) -> None:
    if found > most:
        raise WireError("oversized", f"{found} {what}, at most {most} are taken: raise delivery.{key} on this phone")


def _with_submodel(offer: Offer, request: DeliverRequest, tensors: Tensors, engine: Engine) -> Offer:
    """Add a cluster's submodel, read from its file, to the offer. Raises WireError when it does not fit the plan."""
    cluster = request.clusters[0] if len(request.clusters) == 1 else len(offer.centroids)
    file = tensors.get(f"submodel.{cluster}")
    if cluster >= len(offer.centroids) or file is None or len(offer.plans) != 1:
        raise WireError("missing_tensor", "one plan, its submodel and its centroid are needed")
    plan = offer.plans[0]
    submodel = engine.load(plan, decode(file, engine.groups, plan))
    return replace(offer, centroids=offer.centroids[cluster : cluster + 1], submodel=submodel)
