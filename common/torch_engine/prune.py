"""The engine in one page: observe, select, plan, slice, merge."""

from __future__ import annotations

import numpy as np

from common.errors import DataError
from common.plan import Indices
from common.planner import Budget, plan
from common.selection import removal_curve
from common.slicer import slice_state
from common.torch_engine.base import BaseModel, Submodel
from common.torch_engine.evidence import Sampler, collect_rows, output_sensitivity, readings
from common.torch_engine.forward import Images, normalise
from common.torch_engine.merge import merge


def prune(base: BaseModel, classes: Indices, images: Images, budget: Budget, seed: int = 0) -> Submodel:
    """The submodel of `base` for the needed `classes` within `budget`, from unlabelled images [N, H, W, C] of them.

    Class-conditional second-order selection, global allocation, then sequential merging; no training.
    Raises PlanError for an impossible budget or class, DataError without images.
    """
    if len(images) == 0:
        raise DataError("0 calibration images, at least 1 is needed: give images of the needed classes")
    groups, needed = base.groups, np.unique(classes)
    x = normalise(images, base.mean, base.std)
    sampler = Sampler(len(x), seed=seed)
    rows = collect_rows(base.module, groups, x, sampler)
    sensitivity = output_sensitivity(base.module, groups, needed, x, seed)
    curves = {
        group.name: removal_curve(readings(base.module, group, rows, sensitivity))
        for group in groups.prunable
        if group.consumers
    }
    chosen = plan(groups, curves, needed, budget)
    module = base.rebuild(slice_state(base.state, groups, chosen))
    merge(module, base.state, groups, chosen, x, rows, sampler)
    return Submodel(base, chosen, module)
