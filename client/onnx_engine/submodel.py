"""Submodels that ONNX Runtime runs: networks that can be changed, and complete programs."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from fedcaptor.client.onnx_engine.network import BATCH, PIXELS, Network
from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.errors import ModelError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.onnx_graph import SCORES
from fedcaptor.common.onnx_session import Session, in_batches
from fedcaptor.common.plan import Plan

Scores = npt.NDArray[np.float32]

_REMEDY = "delete outcome.json, the phone personalises again"


class _InLabels:
    """Answer in the original labels. `groups`: of the base model; `plan`: its channels and classes that are kept."""

    groups: ChannelGroups
    plan: Plan

    @property
    def classes(self) -> Indices:
        """Return the original labels [k] of its outputs."""
        return self.plan.classes(self.groups)

    def scores(self, images: Images) -> Scores:
        """Compute logits [N, k] of uint8 images [N, H, W, C], in the order of `classes`."""
        if len(images) == 0:
            return np.zeros((0, len(self.classes)), dtype=np.float32)
        return self._scores(images)

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

    @abstractmethod
    def _scores(self, images: Images) -> Scores: ...


@dataclass(frozen=True, eq=False)
class OnnxSubmodel(_InLabels):
    """Hold a network that keeps the channels of a plan.

    Attributes:
        network: The smaller network.
        groups: Channel groups of the base model.
        plan: Which of its channels and classes the network keeps.
    """

    network: Network
    groups: ChannelGroups
    plan: Plan

    def _scores(self, images: Images) -> Scores:
        return self.network.scores(images)


@dataclass(frozen=True, eq=False)
class ProgramSubmodel(_InLabels):
    """Hold a submodel as a complete program, whose weights nothing changes any more: in eight bits, or from a file.

    Attributes:
        content: An .onnx file that maps float images [N, C, H, W] in [0, 1] to scores [N, k].
        session: What runs it.
        groups: Channel groups of the base model.
        plan: Which of its channels and classes the program keeps.
    """

    content: bytes
    session: Session
    groups: ChannelGroups
    plan: Plan

    @classmethod
    def of(cls, content: bytes, groups: ChannelGroups, plan: Plan) -> ProgramSubmodel:
        """Load a program. Raises ModelError when it cannot be run, or its outputs are not those of the plan."""
        channels, height, width = groups.input_shape
        blank = np.zeros((1, height, width, channels), np.uint8)
        try:
            loaded = cls(content, Session(ModelProto.FromString(content), {}), groups, plan)
            outputs = loaded.scores(blank).shape[1]
        except Exception as error:  # those of protobuf and of ONNX Runtime have no class in common
            reason = str(error).partition("\n")[0]
            raise ModelError(f"the file is no program of a submodel ({reason}): {_REMEDY}") from error
        kept = len(loaded.classes)
        if outputs != kept:
            raise ModelError(f"the program has {outputs} outputs, its plan keeps {kept} classes: {_REMEDY}")
        return loaded

    def _scores(self, images: Images) -> Scores:
        return in_batches(self.session, {PIXELS: pixels(images)}, BATCH)[SCORES]


def pixels(images: Images) -> Scores:
    """Turn uint8 images [N, H, W, C] into what a complete program takes."""
    return np.ascontiguousarray(np.asarray(images).transpose(0, 3, 1, 2), np.float32) / np.float32(255)
