"""The pruning engine in one page: observe, select, plan, slice, reconstruct weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.errors import DataError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.observations import ROWS, Sampler, curves_of
from fedcaptor.common.plan import Plan
from fedcaptor.common.planner import Budget, allocate
from fedcaptor.common.selection import PruningCurve
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.curve_calibration import calibrate_curves
from fedcaptor.common.torch_engine.evidence import Response, output_sensitivity, recorded, responses
from fedcaptor.common.torch_engine.factory import sliced
from fedcaptor.common.torch_engine.forward import normalise
from fedcaptor.common.torch_engine.reconstruction import reconstruct_weights

Sensitivity = Callable[[nn.Module, ChannelGroups, Indices, torch.Tensor, int], dict[str, Floats]]
"""Takes (model, groups, target classes, normalised x [N, C, H, W], seed), gives a matrix [O, O] by consuming layer."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Hold calibration statistics: what the full model shows of its target classes on calibration images.

    Gathered once, they serve any number of budgets.

    Attributes:
        base: The full model.
        classes: Target classes, sorted labels [k].
        x: The calibration images, normalised [N, C, H, W].
        full: How the full model's layers respond to them, by layer.
        curves: Pruning curve of each group, by name.
    """

    base: BaseModel
    classes: Indices
    x: torch.Tensor
    full: Mapping[str, Response]
    curves: Mapping[str, PruningCurve]

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
        """Observe the full model on calibration images.

        Args:
            base: The full model.
            classes: Target classes, labels that the submodels are to answer with.
            images: Unlabelled images of these classes, uint8 [N, H, W, C].
            start: Channels outside this plan are removed first.
            importance: Factors [channels] on the cost of removing a group's channels, by group.
            seed: Chooses map positions and draws random signs.
            rows: Most observations of a layer.
            sensitivity: Estimates the sensitivity of the target classes' logits to errors at layers' outputs.

        Raises:
            DataError: There are no images.
        """
        if len(images) == 0:
            raise DataError("0 calibration images, at least 1 is needed: give images of the target classes")
        groups, target_classes = base.groups, np.unique(classes)
        x = normalise(images, base.mean, base.std)
        sampler = Sampler(len(x), rows, seed)
        with recorded(base.module, groups, sampler) as seen, responses(base.module, groups, sampler) as full:
            sensitivities = sensitivity(base.module, groups, target_classes, x, seed)
        curves = curves_of(groups, base.state, seen, sensitivities, start=start, importance=importance)
        if start is None:
            curves = calibrate_curves(base, target_classes, x, seen, curves)
        return cls(base, target_classes, x, full, curves)

    def submodel(self, budget: Budget) -> Submodel:
        """Plan within a budget, slice, and reconstruct weights. Raises PlanError for an impossible one."""
        return self.build(allocate(self.base.groups, self.curves, self.classes, budget))

    def build(self, plan: Plan, /) -> Submodel:
        """Build the submodel of any plan, with weights reconstructed on these images."""
        submodel = sliced(self.base, plan)
        reconstruct_weights(submodel.module, self.base.groups, plan, self.x, self.full)
        return submodel


def prune(base: BaseModel, classes: Indices, images: Images, budget: Budget, seed: int = 0) -> Submodel:
    """Prune a model to some of its classes: second-order selection, global allocation, then weight reconstruction.

    Nothing is trained, and no labels are needed.

    Args:
        base: The full model, which stays as it is.
        classes: Target classes, labels that the submodel is to answer with.
        images: Unlabelled images of these classes, uint8 [N, H, W, C].
        budget: What the submodel may cost.
        seed: Makes the result repeatable.

    Returns:
        The submodel, which answers in the base model's labels.

    Raises:
        PlanError: The budget or a class is impossible.
        DataError: There are no images.
    """
    return Evidence.gather(base, classes, images, seed=seed).submodel(budget)
