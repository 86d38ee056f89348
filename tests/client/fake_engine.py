"""An engine without networks: an image holds its logits, and a submodel answers wrongly on those that it is too small
for. What a phone decides can be followed by hand, and nothing of it may need another engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedcaptor.client.engine import Logits, Submodel
from fedcaptor.common.arrays import Array, Images, Indices
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.plan import Plan
from fedcaptor.common.selection import PruningCurve
from fedcaptor.common.statistics import FilterScores
from tests.common.small_groups import even_curves, small_groups

GROUPS = small_groups()
CLASSES = GROUPS.classes


def pictures(*labels: int, hard: float = 0.0) -> Images:
    """One image uint8 [1, 4, 1] a label: a pixel for each class, and how large a submodel must be to see it."""
    images = np.zeros((len(labels), 1, CLASSES + 1, 1), np.uint8)
    images[np.arange(len(labels)), 0, labels, 0] = 100
    images[:, 0, CLASSES, 0] = round(hard * 100)
    return images


@dataclass(frozen=True, eq=False)
class FakeSubmodel:
    """Takes its first class for every image that is too hard for its share of the MACs."""

    plan: Plan
    gain: float = 0.0

    @property
    def classes(self) -> Indices:
        return self.plan.classes(GROUPS)

    def scores(self, images: Images) -> Logits:
        z = logits(images)[:, self.classes]
        z[hard(images) > self.macs_ratio + self.gain] = np.eye(len(self.classes))[0] * 9
        return z

    def predict(self, images: Images) -> Indices:
        return np.asarray(self.classes[self.scores(images).argmax(1)])

    @property
    def macs_ratio(self) -> float:
        return GROUPS.macs_ratio(self.plan.counts())

    @property
    def parameters_ratio(self) -> float:
        return GROUPS.parameters_ratio(self.plan.counts())


@dataclass(frozen=True, eq=False)
class FakeEvidence:
    classes: Indices
    curves: Mapping[str, PruningCurve]

    def build(self, plan: Plan) -> FakeSubmodel:
        return FakeSubmodel(plan)


@dataclass
class FakeEngine:
    """`tuning`, `eight_bits`: what a submodel gains, as if it were that much larger; None: it has no eight bits."""

    groups: ChannelGroups = GROUPS
    tuning: float = 0.0
    eight_bits: float | None = None
    weights_digest: str = "e" * 64

    def scores(self, images: Images) -> Logits:
        return logits(images)

    def predict(self, images: Images) -> Indices:
        return np.asarray(self.scores(images).argmax(1))

    def moments(self, images: Images) -> Array:
        return np.zeros(0)

    def adapted(self, moments: Array) -> FakeEngine:
        return self

    def filter_scores(self, images: Images) -> FilterScores:
        present = np.bincount(self.predict(images), minlength=CLASSES) > 0
        filters = sum(group.channels for group in GROUPS.prunable)
        return FilterScores(np.ones((filters, 1), np.float32) * present, present)

    def observe(self, classes: Indices, images: Images, **options: Any) -> FakeEvidence:
        assert len(images)
        return FakeEvidence(np.unique(classes), even_curves(GROUPS, a=1.0, b=1.0))

    def tuned(self, submodel: Submodel, images: Images, check: Images, *, steps: int, seed: int) -> FakeSubmodel:
        return FakeSubmodel(submodel.plan, self.tuning)

    def refitted(self, submodel: Submodel, images: Images, classes: Indices) -> Submodel:
        return submodel

    def whole(self) -> FakeSubmodel:
        return FakeSubmodel(Plan.of(GROUPS, {}))

    def restricted(self, classes: Indices) -> FakeSubmodel:
        return FakeSubmodel(Plan.of(GROUPS, {GROUPS.output.name: classes}))

    def within(self, submodel: Submodel) -> FakeEngine:
        raise NotImplementedError

    def widened(self, submodel: Submodel, plan: Plan) -> FakeSubmodel:
        return FakeSubmodel(plan)

    def quantised(self, submodel: Submodel, images: Images) -> FakeSubmodel | None:
        assert len(images)
        return None if self.eight_bits is None else FakeSubmodel(submodel.plan, self.eight_bits)

    def program(self, submodel: Submodel) -> None:
        return None

    def of_program(self, plan: Plan, content: bytes) -> FakeSubmodel:
        raise NotImplementedError

    def tensors(self, submodel: Submodel) -> dict[str, Array]:
        return {"gain": np.array([0.0], np.float32)}

    def load(self, plan: Plan, tensors: Mapping[str, Array]) -> FakeSubmodel:
        return FakeSubmodel(plan)


def logits(images: Images) -> Logits:
    return images[:, 0, :CLASSES, 0].astype(np.float32) / 10


def hard(images: Images) -> Array:
    return images[:, 0, CLASSES, 0] / 100
