"""The engine in one page: observe, select, plan, slice, merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.errors import DataError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.plan import Plan
from fedcaptor.common.planner import Budget, plan
from fedcaptor.common.selection import RemovalCurve, removal_curve
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.calibration import calibrated
from fedcaptor.common.torch_engine.evidence import (
    ROWS,
    Response,
    Sampler,
    output_sensitivity,
    readings,
    recorded,
    responses,
)
from fedcaptor.common.torch_engine.factory import sliced
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.torch_engine.merge import merge

Sensitivity = Callable[[nn.Module, ChannelGroups, Indices, torch.Tensor, int], dict[str, Floats]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the full model shows of its needed classes on calibration images: one serves a whole ladder of budgets.

    `x`: normalised images. `full`: how the full model's layers respond to them. `curves`: removal curve of each group.
    """

    base: BaseModel
    classes: Indices
    x: torch.Tensor
    full: Mapping[str, Response]
    curves: Mapping[str, RemovalCurve]

    @classmethod
    def gather(
        cls,
        base: BaseModel,
        classes: Indices,
        images: Images,
        *,
        start: Plan | None = None,
        importance: Mapping[str, Floats] | None = None,
        seed: int = 0,
        rows: int = ROWS,
        sensitivity: Sensitivity = output_sensitivity,
    ) -> Evidence:
        """Observe unlabelled `images` uint8 [N, H, W, C] of the needed `classes`.

        `start`: channels outside this plan are removed first. `importance`: factors [channels] on the cost of removing
        a group's channels. `sensitivity`: how needed logits feel errors at layers' outputs. Raises DataError without
        images.
        """
        if len(images) == 0:
            raise DataError("0 calibration images, at least 1 is needed: give images of the needed classes")
        groups, needed = base.groups, np.unique(classes)
        x = normalise(images, base.mean, base.std)
        sampler = Sampler(len(x), rows, seed)
        with recorded(base.module, groups, sampler) as seen, responses(base.module, groups, sampler) as full:
            felt = sensitivity(base.module, groups, needed, x, seed)
        curves = {
            group.name: removal_curve(
                readings(base.module, group, seen, felt),
                importance=None if importance is None else importance.get(group.name),
                start=None if start is None else start.kept.get(group.name),
            )
            for group in groups.prunable
            if group.consumers
        }
        if start is None:
            curves = calibrated(base, needed, x, seen, curves)
        return cls(base, needed, x, full, curves)

    def submodel(self, budget: Budget) -> Submodel:
        """Plan, slice and merge. Raises PlanError for an impossible budget."""
        return self.merged(plan(self.base.groups, self.curves, self.classes, budget))

    def merged(self, chosen: Plan) -> Submodel:
        """The submodel of any plan, merged on these images."""
        submodel = sliced(self.base, chosen)
        merge(submodel.module, self.base.groups, chosen, self.x, self.full)
        return submodel


def prune(base: BaseModel, classes: Indices, images: Images, budget: Budget, seed: int = 0) -> Submodel:
    """The submodel of `base` for the needed `classes` within `budget`, from unlabelled images [N, H, W, C] of them.

    Class-conditional second-order selection, global allocation, then sequential merging; no training.
    Raises PlanError for an impossible budget or class, DataError without images.
    """
    return Evidence.gather(base, classes, images, seed=seed).submodel(budget)
