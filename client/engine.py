"""What a phone needs of the software that runs networks, as protocols: any engine that fulfils them will do.

`fedcaptor.client.torch_engine` is the one with PyTorch. Arrays go in, arrays come out; what a plan is, which plan is
chosen, and whether its submodel is good enough is decided outside, the same for every engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.groups import ChannelGroups, State
from fedcaptor.common.plan import Plan
from fedcaptor.common.selection import PruningCurve
from fedcaptor.common.statistics import FilterScores

Logits = npt.NDArray[np.float32]


class Submodel(Protocol):
    """A network that keeps the channels of a plan and answers in the original labels."""

    @property
    def plan(self) -> Plan: ...

    @property
    def classes(self) -> Indices:
        """Original labels [k] of its outputs, sorted."""
        ...

    def scores(self, images: Images) -> Logits:
        """Logits [N, k] of uint8 images [N, H, W, C], in the order of `classes`."""
        ...

    def predict(self, images: Images) -> Indices:
        """Original labels [N]."""
        ...

    @property
    def macs_ratio(self) -> float:
        """Multiply-accumulates of one image over those of the full model."""
        ...

    @property
    def parameters_ratio(self) -> float:
        """Stored values over those of the full model."""
        ...


class Evidence(Protocol):
    """What the full model shows of its target classes on calibration images: one serves a whole ladder of budgets."""

    @property
    def classes(self) -> Indices:
        """Target classes [k], sorted."""
        ...

    @property
    def curves(self) -> Mapping[str, PruningCurve]:
        """What removing channels costs, by channel group."""
        ...

    def build(self, plan: Plan) -> Submodel:
        """The submodel of any plan, its weights reconstructed on these images."""
        ...


class Engine(Protocol):
    """One base model, the full network, and what can be done with it on a phone.

    A submodel is good for the engine that made it alone. All are deterministic: the same calls give the same numbers.
    """

    @property
    def groups(self) -> ChannelGroups:
        """Which channels can be removed together."""
        ...

    @property
    def weights_digest(self) -> str:
        """SHA-256 (hex) of the base model's weights and normalisation, as `BaseModel.weights_digest` defines it."""
        ...

    def scores(self, images: Images) -> Logits:
        """Logits [N, C] of uint8 images [N, H, W, C]; N may be 0."""
        ...

    def predict(self, images: Images) -> Indices:
        """Labels [N] of uint8 images [N, H, W, C]; N may be 0."""
        ...

    def filter_scores(self, images: Images) -> FilterScores:
        """Class-wise scores of all prunable filters on at least one image; its own predictions stand for labels."""
        ...

    def observe(
        self,
        classes: Indices,
        images: Images,
        *,
        start: Plan | None = None,
        importance: Mapping[str, Floats] | None = None,
        seed: int = 0,
        rows: int,
    ) -> Evidence:
        """Evidence on unlabelled images of the target `classes`.

        `start`: channels outside this plan are removed first. `importance`: factors [channels] by group on the cost of
        removing a channel. `rows`: positions of feature maps that are kept of each layer. Raises DataError without
        images.
        """
        ...

    def tuned(self, submodel: Submodel, images: Images, check: Images, *, steps: int, seed: int) -> Submodel:
        """The submodel after `steps` gradient steps towards the full model's answers on `images`, the best on `check`.

        An engine that cannot train returns it as it is.
        """
        ...

    def refitted(self, submodel: Submodel, images: Images, classes: Indices) -> Submodel:
        """A copy whose outputs for `classes` follow the full model's logits on unlabelled `images`."""
        ...

    def whole(self) -> Submodel:
        """The full model as the submodel that keeps everything."""
        ...

    def restricted(self, classes: Indices) -> Submodel:
        """The full model with outputs for `classes` alone."""
        ...

    def within(self, submodel: Submodel) -> Engine:
        """An engine whose base model is `submodel`: channels and classes are those of it."""
        ...

    def widened(self, submodel: Submodel, plan: Plan) -> Submodel:
        """A submodel of `within(…)` as one of this engine; `plan` says what it keeps of this base model."""
        ...

    def tensors(self, submodel: Submodel) -> State:
        """The submodel's weights by name, to be stored."""
        ...

    def load(self, plan: Plan, tensors: State) -> Submodel:
        """The submodel of `plan` with these weights. Raises ModelError when they are no slice of the base model."""
        ...
