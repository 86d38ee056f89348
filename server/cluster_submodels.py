"""Hold a round's submodels, one for each cluster and tier; store them in the journal and offer them to phones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedcaptor.common.calibration import Calibration
from fedcaptor.common.config import Config
from fedcaptor.common.groups import ChannelGroups, State
from fedcaptor.common.messages import DeliverRequest, digest_of
from fedcaptor.common.plan import Plan
from fedcaptor.common.plan_bits import pack_plan, unpack_plan
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.server.collect import Courier
from fedcaptor.server.journal import Result
from fedcaptor.server.planning import ClusterPlan

Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class ClusterSubmodels:
    """Hold all plans of a round; that of cluster k and tier t is at k · tiers + t (`common.tiers`), at k without tiers.
    Where photos have looks, all those of the first look come first.

    `states`: the submodels' tensors. `why`: what each layer kept and for which reason. `disagreement`: share of
    validation images on which a submodel differs from the full model, None where no tolerance was asked for.
    """

    plans: Sequence[Plan]
    states: Sequence[State]
    why: Sequence[list[dict[str, Any]]]
    disagreement: Sequence[float | None]

    def submodels(self, base: BaseModel) -> list[Submodel]:
        """Build the networks, in the order of the plans."""
        return [Submodel(base, plan, base.rebuild(state)) for plan, state in zip(self.plans, self.states, strict=True)]


def pack(made: Sequence[ClusterPlan], groups: ChannelGroups) -> Result:
    """Encode the plans and submodels of a round as the journal stores them: (outcome, tensors)."""
    tensors: Tensors = {}
    for n, one in enumerate(made):
        tensors[f"{n}/plan"] = pack_plan(dict(one.plan.kept), groups)
        for name, tensor in one.submodel.module.state_dict().items():
            tensors[f"{n}/state/{name}"] = tensor.numpy()
    return {"why": [one.why for one in made], "disagreement": [one.disagreement for one in made]}, tensors


def unpack(outcome: Mapping[str, Any], tensors: Tensors, groups: ChannelGroups) -> ClusterSubmodels:
    """Decode what `pack` encoded."""
    count = len(outcome["why"])
    plans = [Plan.of(groups, unpack_plan(tensors[f"{n}/plan"], groups)) for n in range(count)]
    states: list[State] = [{} for _ in range(count)]
    for key, tensor in tensors.items():
        number, _, name = key.partition("/state/")
        if name:
            states[int(number)][name] = tensor
    return ClusterSubmodels(plans, states, outcome["why"], outcome["disagreement"])


def offered(
    config: Config,
    groups: ChannelGroups,
    centroids: npt.NDArray[np.float64],
    plans: Sequence[Plan],
    preference: npt.NDArray[Any] | None,
    calibrations: Sequence[Calibration],
) -> Tensors:
    """Collect what is offered to all phones alike, but for reference images (`server.reference`).

    `DeliverRequest` names and describes the tensors.
    """
    packed = np.stack([each.packed() for each in calibrations])
    tensors: Tensors = {
        "topics" if config.clusters.method == "topics" else "centroids": centroids.astype(np.float32),
        "calibration": packed if len(packed) > 1 else packed[0],
    }
    if preference is not None and config.scores.weight > 0:
        tensors["preference"] = preference.astype(np.float32)
    for n, plan in enumerate(plans):
        tensors[f"plan.{n}"] = pack_plan(dict(plan.kept), groups)
    return tensors


def offer(
    config: Config,
    courier: Courier,
    round: int,
    tensors: Tensors,
    plans: Sequence[Plan],
    weights: str,
    issued: int = 0,
    synthetic: bool = False,
) -> DeliverRequest:
    """Make the header for a delivery of `tensors`."""
    return DeliverRequest(
        run=courier.run,
        round=round,
        request=courier.request_id(str(round), "deliver", digest_of(tensors)),
        mode="plan",
        synthetic=synthetic,
        weights=weights,
        clusters=tuple(range(len(plans))),
        digests=tuple(plan.digest for plan in plans),
        tiers=tuple(tier.name for tier in config.tiers),
        issued=issued,
    )
