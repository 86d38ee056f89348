"""A submodel that ONNX Runtime runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcaptor.client.onnx_engine.network import Network
from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.plan import Plan


@dataclass(frozen=True, eq=False)
class OnnxSubmodel:
    """Hold a network that keeps the channels of a plan.

    Attributes:
        network: The smaller network.
        groups: Channel groups of the base model.
        plan: Which of its channels and classes the network keeps.
    """

    network: Network
    groups: ChannelGroups
    plan: Plan

    @property
    def classes(self) -> Indices:
        """Return the original labels [k] of its outputs."""
        return self.plan.classes(self.groups)

    def scores(self, images: Images) -> npt.NDArray[np.float32]:
        """Compute logits [N, k] of uint8 images [N, H, W, C], in the order of `classes`."""
        if len(images) == 0:
            return np.zeros((0, len(self.classes)), dtype=np.float32)
        return self.network.scores(images)

    def predict(self, images: Images) -> Indices:
        """Predict original labels [N] of uint8 images [N, H, W, C]."""
        return np.asarray(self.classes[self.scores(images).argmax(1)])

    @property
    def macs_ratio(self) -> float:
        """MACs over those of the base model."""
        return self.groups.macs_ratio(self.plan.counts())

    @property
    def parameters_ratio(self) -> float:
        """Stored values over those of the base model."""
        return self.groups.parameters_ratio(self.plan.counts())
