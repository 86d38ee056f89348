"""Implement the engine of a phone with PyTorch: `fedcaptor.client.engine` by `fedcaptor.common.torch_engine`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from fedcaptor.client import engine
from fedcaptor.client.engine import Logits
from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.errors import ModelError
from fedcaptor.common.groups import ChannelGroups, State
from fedcaptor.common.plan import Plan
from fedcaptor.common.selection import PruningCurve
from fedcaptor.common.statistics import FilterScores
from fedcaptor.common.subgroups import subgroups
from fedcaptor.common.torch_engine import factory, outputs, prune, tuning
from fedcaptor.common.torch_engine.base import BaseModel, Submodel
from fedcaptor.common.torch_engine.forward import logits, normalise
from fedcaptor.common.torch_engine.network import state_of
from fedcaptor.common.torch_engine.recalibrate import moments_on
from fedcaptor.common.torch_engine.scores import normalised, taylor_scores


@lru_cache(maxsize=2)
def load_base(weights: Path, name: str, input_shape: tuple[int, int, int]) -> BaseModel:
    """Return the base model in memory, loaded once a process."""
    torch.set_num_threads(1)  # results do not depend on the machine's cores, and phones run side by side
    return BaseModel.load(weights, name, input_shape)


_thread = threading.local()


def of_this_thread(base: BaseModel) -> TorchEngine:
    """Return an engine with a network of the calling thread's own: it carries hooks, and phones answer side by side."""
    if getattr(_thread, "origin", None) is not base:
        torch.set_num_threads(1)  # holds for the calling thread
        _thread.origin, _thread.own = base, TorchEngine(replace(base, module=base.rebuild(base.state)))
    own: TorchEngine = _thread.own
    return own


@dataclass(frozen=True, eq=False)
class TorchEvidence:
    """Hold evidence that hooks on the network gathered."""

    gathered: prune.Evidence

    @property
    def classes(self) -> Indices:
        return self.gathered.classes

    @property
    def curves(self) -> Mapping[str, PruningCurve]:
        return self.gathered.curves

    def build(self, plan: Plan) -> Submodel:
        return self.gathered.build(plan)


@dataclass(frozen=True, eq=False)
class TorchEngine:
    """Run the full network `base`. One thread at a time may call: evidence and scores put hooks on it.

    `shipped`: what `base` was adapted from; None: `base` is as it was shipped.
    """

    base: BaseModel
    shipped: BaseModel | None = None

    @property
    def groups(self) -> ChannelGroups:
        return self.base.groups

    @property
    def weights_digest(self) -> str:
        return (self.shipped or self.base).weights_digest

    def moments(self, images: Images) -> Floats:
        return moments_on(self.base, images)

    def adapted(self, moments: Floats) -> TorchEngine:
        return TorchEngine(self.base.adapted(moments), self.shipped or self.base)

    def scores(self, images: Images) -> Logits:
        if len(images) == 0:
            return np.zeros((0, self.groups.classes), dtype=np.float32)
        return self.base.scores(images)

    def predict(self, images: Images) -> Indices:
        return np.asarray(self.scores(images).argmax(1))

    def filter_scores(self, images: Images) -> FilterScores:
        x = normalise(images, self.base.mean, self.base.std)
        predictions = logits(self.base.module, x).argmax(1)
        scores = taylor_scores(self.base.module, self.groups, x, predictions)
        return FilterScores(normalised(scores), scores.presence > 0)

    def observe(
        self,
        classes: Indices,
        images: Images,
        *,
        start: Plan | None = None,
        importance: Mapping[str, Floats] | None = None,
        seed: int = 0,
        rows: int,
    ) -> TorchEvidence:
        gathered = prune.Evidence.gather(
            self.base, classes, images, start=start, importance=importance, seed=seed, rows=rows
        )
        return TorchEvidence(gathered)

    def tuned(self, submodel: engine.Submodel, images: Images, check: Images, *, steps: int, seed: int) -> Submodel:
        return tuning.tune(_own(submodel), images, check, steps=steps, seed=seed).submodel

    def refitted(self, submodel: engine.Submodel, images: Images, classes: Indices) -> Submodel:
        return outputs.refitted(_own(submodel), images, classes)

    def whole(self) -> Submodel:
        return Submodel(self.base, Plan.of(self.groups, {}), self.base.module)

    def restricted(self, classes: Indices) -> Submodel:
        return factory.restricted(self.base, classes)

    def within(self, submodel: engine.Submodel) -> TorchEngine:
        module = _own(submodel).module
        inner = subgroups(self.groups, submodel.plan)
        return TorchEngine(replace(self.base, state=state_of(module), groups=inner, module=module))

    def widened(self, submodel: engine.Submodel, plan: Plan) -> Submodel:
        return Submodel(self.base, plan, _own(submodel).module)

    def quantised(self, submodel: engine.Submodel, images: Images) -> None:
        return None

    def program(self, submodel: engine.Submodel) -> None:
        return None

    def of_program(self, plan: Plan, content: bytes) -> Submodel:
        raise ModelError("PyTorch runs no .onnx file: give the phone its network's graph, or delete outcome.json")

    def tensors(self, submodel: engine.Submodel) -> State:
        return state_of(_own(submodel).module)

    def load(self, plan: Plan, tensors: State) -> Submodel:
        return Submodel(self.base, plan, self.base.rebuild(tensors))


def _own(submodel: engine.Submodel) -> Submodel:
    if not isinstance(submodel, Submodel):
        raise TypeError(f"a submodel of another engine, {type(submodel).__name__}: load its tensors into this one")
    return submodel
