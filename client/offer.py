"""Read what a delivery holds for one phone, checked against its digests and the phone's base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedcaptor.client.engine import Engine, Submodel
from fedcaptor.common.arrays import Images, Indices, Tensors
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.data import mosaic
from fedcaptor.common.errors import DataError, PlanError, WireError
from fedcaptor.common.messages import DeliverRequest
from fedcaptor.common.plan import Plan
from fedcaptor.common.plan_bits import unpack_plan
from fedcaptor.common.submodel_file import decode
from fedcaptor.common.submodel_file import digest as file_digest


@dataclass(frozen=True, eq=False)
class Offer:
    """Hold what every phone receives alike: a plan and a usage centroid per cluster, the server's own reference images
    [R, H, W, C] with labels [R], the filter preference [F, C] and the base model's calibration (None: unknown). Where a
    phone fetches its cluster's `submodel`, plan and centroid are those of this cluster alone.
    """

    plans: Sequence[Plan] = ()
    centroids: npt.NDArray[Any] = field(default_factory=lambda: np.zeros((0, 0)))
    reference: Images | None = None
    labels: Indices | None = None
    preference: npt.NDArray[Any] | None = None
    calibration: Calibration | None = None
    submodel: Submodel | None = None


def read_offer(request: DeliverRequest, tensors: Tensors, engine: Engine, tier: str = "") -> Offer:
    """Read the offer of a delivery to a phone of `tier`, every plan checked against its digest.

    Raises WireError when it does not fit.
    """
    groups = engine.groups
    if request.weights != engine.weights_digest:
        raise WireError(
            "wrong_digest",
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
    if request.tiers and plans:
        if tier not in request.tiers:
            raise WireError("malformed", "no plan is for this phone's tier")
        plans = plans[request.tiers.index(tier) :: len(request.tiers)]
    many = request.mode != "submodel"
    centroids = tensors.get("centroids", np.zeros((0, groups.classes)))
    file, labels = tensors.get("reference"), tensors.get("reference_labels")
    if centroids.ndim != 2 or centroids.shape[1] != groups.classes or (many and plans and len(plans) != len(centroids)):
        raise WireError("wrong_shape", f"centroids are {centroids.shape}, {len(plans)} plans, {groups.classes} classes")
    if (file is None) != (labels is None) or (labels is not None and not 0 < labels.size == len(labels)):
        raise WireError("wrong_shape", "reference images and their labels come together, at least one")
    if labels is not None and not (labels.min() >= 0 and labels.max() < groups.classes):
        raise WireError("wrong_shape", f"reference labels are {labels.min()}..{labels.max()}, {groups.classes} classes")
    packed = tensors.get("calibration")
    try:
        calibration = None if packed is None else Calibration.unpack(packed, groups.classes)
        reference = None
        if file is not None and labels is not None:
            reference = mosaic.decode(file, len(labels), groups.input_shape)
    except DataError as error:
        raise WireError("wrong_shape", str(error)) from None
    offer = Offer(plans, centroids, reference, labels, tensors.get("preference"), calibration)
    return offer if many else _with_submodel(offer, request, tensors, engine)


def _with_submodel(offer: Offer, request: DeliverRequest, tensors: Tensors, engine: Engine) -> Offer:
    """Add a cluster's submodel, read from its file, to the offer. Raises WireError when it does not fit the plan."""
    cluster = request.clusters[0] if len(request.clusters) == 1 else len(offer.centroids)
    file = tensors.get(f"submodel.{cluster}")
    if cluster >= len(offer.centroids) or file is None or len(offer.plans) != 1:
        raise WireError("missing_tensor", "one plan, its submodel and its centroid are needed")
    plan = offer.plans[0]
    submodel = engine.load(plan, decode(file, engine.groups, plan))
    return replace(offer, centroids=offer.centroids[cluster : cluster + 1], submodel=submodel)
