"""Implement the engine of a phone with ONNX Runtime and numpy."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fedcaptor.client import engine
from fedcaptor.client.engine import Logits
from fedcaptor.client.onnx_engine.evidence import OnnxEvidence, observe
from fedcaptor.client.onnx_engine.fitting import LeastSquares
from fedcaptor.client.onnx_engine.network import BATCH, Network, Underway, Visit
from fedcaptor.client.onnx_engine.submodel import OnnxSubmodel, ProgramSubmodel, pixels
from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.domain import adapted, moments_of, norms
from fedcaptor.common.errors import ModelError
from fedcaptor.common.groups import ChannelGroups, State
from fedcaptor.common.observations import consumers, consuming_layers, of_channels
from fedcaptor.common.onnx_graph import COTANGENT, IMAGES, NetworkGraph, effect_of, with_half_weights
from fedcaptor.common.onnx_session import in_batches
from fedcaptor.common.plan import Plan
from fedcaptor.common.preference import normalise
from fedcaptor.common.slicer import slice_state
from fedcaptor.common.softmax import softmax
from fedcaptor.common.statistics import FilterScores
from fedcaptor.common.subgroups import subgroups
from fedcaptor.common.weights_file import load_state, require_finite, statistic, weights_digest

logger = logging.getLogger(__name__)

_RIDGE = 50  # images that the present weights of refitted outputs count as


@dataclass(frozen=True, eq=False)
class OnnxEngine:
    """Run the full network `network`, whose channel groups are `groups`. Any number of threads may call.

    `shipped`: what `network` was adapted from; None: it is as it was shipped.
    """

    network: Network
    groups: ChannelGroups
    shipped: Network | None = None

    @classmethod
    def of(cls, graph: Path, weights: Path, batch: int = BATCH) -> OnnxEngine:
        """Load a network's graph, and weights of its architecture from a safetensors file.

        `batch`: images of one run. Raises ModelError when a file cannot be read, or the two do not fit each other.
        """
        read, (state, metadata) = NetworkGraph.load(graph), load_state(weights)
        require_finite(state, weights)
        _require_shapes(state, read.groups.tensors, f"{weights} does not fit {graph}")
        channels = read.groups.input_shape[0]
        mean, std = (statistic(metadata, key, 0.5, channels) for key in ("mean", "std"))
        return cls(Network(read, {name: state[name] for name in read.groups.tensors}, mean, std, batch), read.groups)

    @cached_property
    def weights_digest(self) -> str:
        network = self.shipped or self.network
        return weights_digest(network.state, network.mean, network.std)

    def moments(self, images: Images) -> Floats:
        measured = self.network.with_state(dict(self.network.state))

        def visit(norm: str) -> Visit:
            def measure(x: Logits) -> None:
                axes = (0, *range(2, x.ndim))
                measured.state[f"{norm}.running_mean"] = x.mean(axes, dtype=np.float64).astype(np.float32)
                measured.state[f"{norm}.running_var"] = x.var(axes, ddof=1, dtype=np.float64).astype(np.float32)

            return measure

        found = norms(self.groups.tensors)
        if found:
            measured.visit(Underway.of(measured.normalise(images)), {norm: visit(norm) for norm in found})
        return moments_of(self.network.state, measured.state)

    def adapted(self, moments: Floats) -> OnnxEngine:
        network = self.network.with_state(adapted(self.network.state, moments))
        return OnnxEngine(network, self.groups, self.shipped or self.network)

    def scores(self, images: Images) -> Logits:
        if len(images) == 0:
            return np.zeros((0, self.groups.classes), dtype=np.float32)
        return self.network.scores(images)

    def predict(self, images: Images) -> Indices:
        return np.asarray(self.scores(images).argmax(1))

    def filter_scores(self, images: Images) -> FilterScores:
        z = self.scores(images).astype(np.float64)
        labels = z.argmax(1)
        cotangent = softmax(z) - np.eye(z.shape[1])[labels]
        names = [effect_of(layer) for layer in consuming_layers(self.groups)]
        values = {IMAGES: self.network.normalise(images), COTANGENT: cotangent.astype(np.float32)}
        effects = in_batches(self.network.session(*names), values, self.network.batch)
        found = {group.name: np.zeros((len(z), group.channels), np.float32) for group in self.groups.prunable}
        for group, consumer in consumers(self.groups):
            found[group.name] += of_channels(effects[effect_of(consumer.layer)], group, consumer)
        totals = []
        for effect in found.values():
            total = np.zeros((self.groups.classes, effect.shape[1]))
            np.add.at(total, labels, np.abs(effect).astype(np.float64))
            totals.append(total.T.astype(np.float32))
        return FilterScores(normalise(totals), np.bincount(labels, minlength=self.groups.classes) > 0)

    def observe(
        self,
        classes: Indices,
        images: Images,
        *,
        start: Plan | None = None,
        importance: Mapping[str, Floats] | None = None,
        seed: int = 0,
        rows: int,
    ) -> OnnxEvidence:
        return observe(
            self.network, self.groups, classes, images, start=start, importance=importance, seed=seed, rows=rows
        )

    def tuned(self, submodel: engine.Submodel, images: Images, check: Images, *, steps: int, seed: int) -> OnnxSubmodel:
        return _own(submodel)

    def refitted(self, submodel: engine.Submodel, images: Images, classes: Indices) -> OnnxSubmodel:
        given, layer = _own(submodel), self.groups.output.producers[0]
        network, rows = given.network, np.searchsorted(given.classes, classes)
        read = network.fitted.reader(layer).input[0]
        x = in_batches(network.session(read), {IMAGES: network.normalise(images)}, network.batch)[read]
        state = {name: tensor.copy() for name, tensor in network.state.items()}
        weight, bias = state[f"{layer}.weight"], state.get(f"{layer}.bias")
        wanted = self.scores(images)[:, classes]
        weight[rows], constant = LeastSquares(x, weight[rows], _RIDGE, bias is not None).fit(wanted)
        if bias is not None:
            bias[rows] = constant
        return replace(given, network=network.with_state(state))

    def whole(self) -> OnnxSubmodel:
        return OnnxSubmodel(self.network, self.groups, Plan.of(self.groups, {}))

    def restricted(self, classes: Indices) -> OnnxSubmodel:
        plan = Plan.of(self.groups, {self.groups.output.name: classes})
        return self._submodel(plan, slice_state(self.network.state, self.groups, plan, own=True))

    def within(self, submodel: engine.Submodel) -> OnnxEngine:
        own = _own(submodel)
        return OnnxEngine(own.network, subgroups(self.groups, own.plan))

    def widened(self, submodel: engine.Submodel, plan: Plan) -> engine.Submodel:
        if isinstance(submodel, ProgramSubmodel):
            return replace(submodel, groups=self.groups, plan=plan)
        return self._submodel(plan, _own(submodel).network.state)

    def tensors(self, submodel: engine.Submodel) -> State:
        return _own(submodel).network.state

    def load(self, plan: Plan, tensors: State) -> OnnxSubmodel:
        _require_shapes(tensors, self.groups.shapes(plan.counts()), "the tensors are no slice of the base model")
        return self._submodel(plan, {name: tensors[name] for name in self.groups.tensors})

    def quantised(self, submodel: engine.Submodel, images: Images) -> ProgramSubmodel | None:
        from fedcaptor.common.onnx_quantisation import calibration_images, quantised  # 15 MB that others do without

        shown = pixels(images[calibration_images(len(images))])
        try:
            content = quantised(_own(submodel).network.program(submodel.classes), shown)
            return ProgramSubmodel.of(content, self.groups, submodel.plan)
        except Exception as error:  # the quantiser's have no class in common, and float32 serves as well
            logger.warning("%s has no eight bits: %r", self.groups.model, error)
            return None

    def program(self, submodel: engine.Submodel) -> bytes:
        if isinstance(submodel, ProgramSubmodel):
            return submodel.content
        return with_half_weights(_own(submodel).network.program(submodel.classes))

    def of_program(self, plan: Plan, content: bytes) -> ProgramSubmodel:
        return ProgramSubmodel.of(content, self.groups, plan)

    def _submodel(self, plan: Plan, state: State) -> OnnxSubmodel:
        return OnnxSubmodel(self.network.with_state(state), self.groups, plan)


def _own(submodel: engine.Submodel) -> OnnxSubmodel:
    if not isinstance(submodel, OnnxSubmodel):
        raise TypeError(f"a submodel of another engine, {type(submodel).__name__}: load its tensors into this one")
    return submodel


def _require_shapes(state: State, shapes: Mapping[str, tuple[int, ...]], problem: str) -> None:
    """Check that tensors have just these names and shapes; raises ModelError, which names the first that has not."""
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in [*shapes, *found]:
        if found.get(name) != shapes.get(name):
            raise ModelError(
                f"{problem}: tensor {name} is {found.get(name, 'missing')}, must be {shapes.get(name, 'left out')}"
            )
