"""Outcome: what phones ended with, for the fleet's figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fedcaptor.common.arrays import Floats, Tensors
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.statistics.base import PhoneView, Precision, Statistic, in_block, nearest, of_classes

if TYPE_CHECKING:
    from fedcaptor.common.config import Config

OUTCOME_FIGURES = (
    "phones",
    "agreement_cluster",
    "agreement",
    "macs",
    "parameters",
    "escalated",
    "personal",
    "drifted",
)
"""What a phone reports of its model, each in [0, 1]; the first is 1, so that a block's sum counts its phones. `drifted`
is 1 where habits had drifted since the last personalisation when the phone took up its newest delivery.
"""


class Outcome(Statistic):
    """The phone's figures in the block of its nearest centroid; zeros (nobody) before the first personalisation.

    The eight figures are never all one. A phone that keeps the full model escalates nothing, and a submodel of m of the
    MACs that hands e of the images to the full model is kept for m + e < 1 alone, so that m² + e² < 1: both stay within
    √7. With another fallback, or where the full model is too large for the phone, a submodel of nearly full size that
    escalates nearly all would be scaled down by the clip, by 7 % at most.
    """

    name = kind = "outcome"
    tensors = frozenset({"centroids"})
    clip = math.sqrt(7)

    def share(self, config: Config) -> float | None:
        return config.privacy.outcome_share

    def sums(self, config: Config, round: int) -> int:
        return 1

    def length(self, groups: ChannelGroups, blocks: int) -> int:
        return blocks * len(OUTCOME_FIGURES)

    def longest(self, groups: ChannelGroups) -> int:
        return self.length(groups, 32)

    def vector(self, phone: PhoneView, tensors: Tensors) -> Floats:
        usage, centroids = phone.usage(), of_classes("centroids", tensors, phone.groups.classes)
        found = phone.outcome()
        values = np.zeros(len(OUTCOME_FIGURES))
        if found is not None:
            values = np.array([1.0, *(float(found[name]) for name in OUTCOME_FIGURES[1:])])
        return in_block(values, nearest(usage, centroids), len(centroids))

    def decode(self, total: Floats, groups: ChannelGroups) -> Floats:
        """Sums by cluster [K, figures], in the order of `OUTCOME_FIGURES`."""
        return total.reshape(-1, len(OUTCOME_FIGURES))

    def precision(self, config: Config, groups: ChannelGroups, clusters: int) -> Precision:
        """Summed over the clusters, divided by all phones."""
        return Precision("a fleet figure in [0, 1], all clusters", math.sqrt(clusters), 0.02)


OUTCOME = Outcome()


def outcome_means(sums: Floats | None) -> dict[str, float] | None:
    """Mean of each figure over the phones of noisy sums [K, figures], within [0, 1]; None when no phone is left of
    them, or without sums.
    """
    if sums is None:
        return None
    total: Mapping[str, float] = dict(zip(OUTCOME_FIGURES, sums.sum(0), strict=True))
    if total["phones"] < 1:
        return None
    return {name: float(np.clip(value / total["phones"], 0, 1)) for name, value in total.items()}
