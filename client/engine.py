"""Define what a phone needs of the software that runs networks, as protocols: any engine that fulfils them will do.

`fedcaptor.client.torch_engine` is the one with PyTorch. Arrays go in, arrays come out; what a plan is, which plan is
chosen, and whether its submodel is good enough is decided outside, alike for every engine.
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
    """Answer in the original labels by a network that keeps the channels of a plan."""

    @property
    def plan(self) -> Plan: ...

    @property
    def classes(self) -> Indices:
        """Return the original labels [k] of its outputs, sorted."""
        ...

    def scores(self, images: Images) -> Logits:
        """Return logits [N, k] of uint8 images [N, H, W, C], in the order of `classes`."""
        ...

    def predict(self, images: Images) -> Indices:
        """Return original labels [N] of uint8 images [N, H, W, C]."""
        ...

    @property
    def macs_ratio(self) -> float:
        """Return the multiply-accumulates of one image over those of the full model."""
        ...

    @property
    def parameters_ratio(self) -> float:
        """Return the number of stored values over that of the full model."""
        ...


class Evidence(Protocol):
    """Hold what calibration images show of the full model's target classes; it serves any number of budgets."""

    @property
    def classes(self) -> Indices:
        """Return the target classes [k], sorted."""
        ...

    @property
    def curves(self) -> Mapping[str, PruningCurve]:
        """Return what removing channels costs, by channel group."""
        ...

    def build(self, plan: Plan) -> Submodel:
        """Build the submodel of any plan, its weights reconstructed on these images."""
        ...


class Engine(Protocol):
    """Run one base model, the full network, and make submodels of it on a phone.

    A submodel is good for the engine that made it alone. All are deterministic: repeated calls give equal numbers.
    """

    @property
    def groups(self) -> ChannelGroups:
        """Return which channels can be removed together."""
        ...

    @property
    def weights_digest(self) -> str:
        """Return the SHA-256 (hex) of the base model's weights and normalisation; `BaseModel` defines it."""
        ...

    def scores(self, images: Images) -> Logits:
        """Return logits [N, C] of uint8 images [N, H, W, C]; N may be 0."""
        ...

    def predict(self, images: Images) -> Indices:
        """Return labels [N] of uint8 images [N, H, W, C]; N may be 0."""
        ...

    def moments(self, images: Images) -> Floats:
        """Return the moments (`common.domain`) of the batch norms on at least two images, each norm in turn reading
        what the one before makes of its new statistics; none for a network without batch norms.
        """
        ...

    def adapted(self, moments: Floats) -> Engine:
        """Return an engine whose base model has its batch norms moved by `moments`; its `weights_digest` stays.

        Raises DataError when they are not as many as the network's.
        """
        ...

    def filter_scores(self, images: Images) -> FilterScores:
        """Score all prunable filters by class on at least one image; the model's own predictions stand for labels."""
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
        """Gather evidence on unlabelled images of the target `classes`.

        `start`: channels outside this plan are removed first. `importance`: factors [channels] by group on the cost of
        removing a channel. `rows`: positions of feature maps that are kept of each layer. Raises DataError without
        images.
        """
        ...

    def tuned(self, submodel: Submodel, images: Images, check: Images, *, steps: int, seed: int) -> Submodel:
        """Tune a submodel by `steps` gradient steps towards the full model's answers on `images`; keep the best on
        `check`.

        An engine that cannot train returns it as it is.
        """
        ...

    def refitted(self, submodel: Submodel, images: Images, classes: Indices) -> Submodel:
        """Return a copy whose outputs for `classes` follow the full model's logits on unlabelled `images`."""
        ...

    def whole(self) -> Submodel:
        """Return the full model as the submodel that keeps everything."""
        ...

    def restricted(self, classes: Indices) -> Submodel:
        """Return the full model with outputs for `classes` alone."""
        ...

    def within(self, submodel: Submodel) -> Engine:
        """Return an engine whose base model is `submodel`: channels and classes are those of it."""
        ...

    def widened(self, submodel: Submodel, plan: Plan) -> Submodel:
        """Return a submodel of `within(…)` as one of this engine; `plan` says what it keeps of this base model."""
        ...

    def quantised(self, submodel: Submodel, images: Images) -> Submodel | None:
        """Return a submodel in eight bits: ranges of values are those that at least one of the `images` shows.

        It can be run and stored, not changed. Returns None where the engine has no eight bits for this network.
        """
        ...

    def program(self, submodel: Submodel) -> bytes | None:
        """Return an .onnx file, to be stored, that maps float images [N, C, H, W] in [0, 1] to scores [N, k].

        An engine that writes no programs returns None; the submodel's tensors are then stored.
        """
        ...

    def of_program(self, plan: Plan, content: bytes) -> Submodel:
        """Make the submodel of `plan` whose `program` this is. Raises ModelError when it cannot be run."""
        ...

    def tensors(self, submodel: Submodel) -> State:
        """Return the submodel's weights by name, to be stored."""
        ...

    def load(self, plan: Plan, tensors: State) -> Submodel:
        """Make the submodel of `plan` with these weights.

        Raises ModelError when they are no slice of the base model.
        """
        ...
