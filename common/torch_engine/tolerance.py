"""Find the smallest submodel whose answers stay within a tolerance of the full model's on a validation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.errors import DataError
from fedcaptor.common.plan import Plan
from fedcaptor.common.planner import Budget, ladder
from fedcaptor.common.selection import PruningCurve
from fedcaptor.common.torch_engine.base import BaseModel, Submodel

RATIOS = tuple(round(0.05 * k, 2) for k in range(1, 21))
"""MACs ratios that are tried: 0.05 to 1."""


class PlanBuilder(Protocol):
    """Anything with pruning curves that builds a plan's submodel: `Evidence`, or any strategy's `PreparedStrategy`."""

    @property
    def base(self) -> BaseModel:
        """Return the full model."""

    @property
    def classes(self) -> Indices:
        """Return the target classes, sorted labels [k]."""

    @property
    def curves(self) -> Mapping[str, PruningCurve]:
        """Return the pruning curve of each group, by name."""

    def build(self, plan: Plan, /) -> Submodel:
        """Build the submodel of any plan."""


@dataclass(frozen=True, eq=False)
class Verified:
    """Hold a submodel with its measured disagreement.

    `disagreement`: share of the validation images on which the submodel and the full model, restricted to the same
    classes, differ.
    """

    submodel: Submodel
    disagreement: float


def smallest_within(
    evidence: PlanBuilder, budget: Budget, images: Images, tolerance: float, ratios: Sequence[float] = RATIOS
) -> Verified:
    """Find by bisection the smallest MACs ratio within `budget` that disagrees on at most `tolerance` of `images`.

    Larger ratios are taken to agree no less, and what is returned has been measured. Where no ratio is good enough it
    is the largest within the budget: compare its disagreement.

    Args:
        evidence: Calibration statistics of the target classes.
        budget: Limits that hold for every ratio.
        images: Validation images, uint8 [N, H, W, C]; they must not be those of the evidence.
        tolerance: Share of images that may be answered differently.
        ratios: MACs ratios to try.

    Raises:
        PlanError: The budget is impossible.
        DataError: There are no images.
    """
    if len(images) == 0:
        raise DataError("0 images are held out to verify the tolerance, at least 1 is needed: give more images")
    base, classes = evidence.base, evidence.classes
    answers = classes[base.scores(images)[:, classes].argmax(1)]

    def verified(submodel: Submodel) -> Verified:
        return Verified(submodel, float((submodel.predict(images) != answers).mean()))

    found = ladder(base.groups, evidence.curves, classes, budget, ratios)
    plans = list({plan.digest: plan for plan in found.values()}.values())
    best, low, high = None, 0, len(plans) - 1
    while low <= high:
        middle = (low + high) // 2
        tried = verified(evidence.build(plans[middle]))
        if tried.disagreement <= tolerance:
            best, high = tried, middle - 1
        else:
            low, worst = middle + 1, tried
    return best or worst
