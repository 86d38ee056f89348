"""Observe a network on images of the target classes with ONNX Runtime, and make submodels of what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedcaptor.client.onnx_engine.fitting import Response, reconstruct_weights
from fedcaptor.client.onnx_engine.network import Network, Underway, Visit
from fedcaptor.client.onnx_engine.submodel import OnnxSubmodel
from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.errors import DataError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.observations import (
    Restoration,
    Rows,
    Sampler,
    calibrated,
    consumers,
    consuming_layers,
    curves_of,
    measured_of,
)
from fedcaptor.common.onnx_graph import COTANGENT, IMAGES, sensitivity_of
from fedcaptor.common.plan import Plan
from fedcaptor.common.selection import PruningCurve
from fedcaptor.common.slicer import slice_state


@dataclass(frozen=True, eq=False)
class OnnxEvidence:
    """Hold what calibration images show of a network.

    Attributes:
        network: The network.
        groups: Its channel groups.
        classes: Target classes, sorted labels [k].
        x: The calibration images, normalised [N, C, H, W].
        full: How the network's layers respond to them, by layer.
        curves: Pruning curve of each group, by name.
    """

    network: Network
    groups: ChannelGroups
    classes: Indices
    x: npt.NDArray[np.float32]
    full: Mapping[str, Response]
    curves: Mapping[str, PruningCurve]

    def build(self, plan: Plan) -> OnnxSubmodel:
        """Build the submodel of any plan, with weights reconstructed on these images."""
        sliced = self.network.with_state(slice_state(self.network.state, self.groups, plan, own=True))
        reconstruct_weights(sliced, self.groups, plan, self.x, self.full)
        return OnnxSubmodel(sliced, self.groups, plan)


def observe(
    network: Network,
    groups: ChannelGroups,
    classes: Indices,
    images: Images,
    *,
    start: Plan | None,
    importance: Mapping[str, Floats] | None,
    seed: int,
    rows: int,
) -> OnnxEvidence:
    """Gather evidence, see `Engine.observe`. Raises DataError without images."""
    if len(images) == 0:
        raise DataError("0 calibration images, at least 1 is needed: give images of the target classes")
    classes, x = np.unique(classes), network.normalise(images)
    seen, full, sensitivity = _observed(network, groups, classes, x, Sampler(len(x), rows, seed))
    curves = curves_of(groups, network.state, seen, sensitivity, start=start, importance=importance)
    if start is None:
        measured = x[measured_of(len(x))]
        curves = calibrated(groups, classes, len(x), seen, curves, _Restored(network, measured).scores)
    return OnnxEvidence(network, groups, classes, x, full, curves)


def _observed(
    network: Network, groups: ChannelGroups, classes: Indices, x: npt.NDArray[np.float32], sampler: Sampler
) -> tuple[Rows, dict[str, Response], dict[str, Floats]]:
    """Observe channels at consumers' inputs, layers' outputs, and the sensitivity [O, O] of the classes' logits there.

    The sensitivity is that of `output_sensitivity` of the torch engine, with the same random signs.
    """
    layers = consuming_layers(groups)
    readers = {layer: network.fitted.reader(layer) for layer in layers}
    wanted = dict.fromkeys(name for reader in readers.values() for name in (reader.input[0], reader.output[0]))
    session = network.session(*wanted, *map(sensitivity_of, layers))
    rows, outputs = _Observations(sampler), _Observations(sampler)
    total = {layer: np.zeros(()) for layer in layers}
    signs = np.random.RandomState(sampler.seed % (1 << 32))  # draws what torch's generator does
    for start in range(0, len(x), network.batch):
        part = x[start : start + network.batch]
        cotangent = np.zeros((len(part), groups.classes), np.float32)
        drawn = (signs.randint(0, 1 << 32, (len(part), len(classes)), np.uint32) % 2).astype(np.float32) * 2 - 1
        cotangent[:, classes] = drawn - drawn.mean(1, keepdims=True)
        found = session.run({IMAGES: part, COTANGENT: cotangent})
        for group, consumer in consumers(groups):
            first, last = consumer.offset, consumer.offset + group.channels * consumer.taps
            read = found[readers[consumer.layer].input[0]][:, first:last]
            rows.add((group.name, consumer.layer), start, read, group.channels)
        for layer in layers:
            made = found[readers[layer].output[0]]
            outputs.add(("", layer), start, made, made.shape[1])
            total[layer] = total[layer] + found[sensitivity_of(layer)]
    return (
        rows.matrices(),
        {layer: Response(rows, outputs.positions[layer]) for (_, layer), rows in outputs.matrices().items()},
        {layer: each / len(x) for layer, each in total.items()},
    )


@dataclass(frozen=True, eq=False)
class _Observations:
    """Collect samples [N, P, channels] of maps, by group and layer; whole layers have no group."""

    sampler: Sampler
    kept: Rows = field(default_factory=dict)
    positions: dict[str, Indices] = field(default_factory=dict)

    def add(self, key: tuple[str, str], start: int, values: npt.NDArray[np.float32], channels: int) -> None:
        """Take the maps [n, channels · taps, …] of the images from number `start` on."""
        maps, (_, layer) = values.reshape(len(values), channels, -1), key
        if key not in self.kept:
            self.positions[layer] = self.sampler.positions(layer, maps.shape[2])
            self.kept[key] = np.empty((self.sampler.images, len(self.positions[layer]), channels), np.float32)
        self.kept[key][start : start + len(maps)] = maps[:, :, self.positions[layer]].transpose(0, 2, 1)

    def matrices(self) -> Rows:
        """Return the observations [R, channels]."""
        return {key: kept.reshape(-1, kept.shape[2]) for key, kept in self.kept.items()}


@dataclass(eq=False)
class _Restored:
    """Compute the scores of normalised images `x` with some channels restored.

    Groups come in the order in which they are executed: what lies before the first restored layer is not computed anew.
    """

    network: Network
    x: npt.NDArray[np.float32]
    way: Underway | None = None

    def scores(self, restored: list[Restoration]) -> npt.NDArray[np.float32]:
        first = min((self.network.fitted.position(each.consumer.layer) for each in restored), default=0)
        if self.way is None or first < self.way.place:
            self.way = Underway.of(self.x)
        self.way = self.network.moved(self.way, first)
        return self.network.visit(self.way, {each.consumer.layer: _restoring(each) for each in restored})


def _restoring(restoration: Restoration) -> Visit:
    """Make the visit that restores a consumer's channels."""

    def restore(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        seen, part, channels = x.copy(), restoration.part, len(restoration.constant)
        maps = seen[:, part].reshape(len(seen), channels, -1)
        restored = restoration.matrix @ maps[:, restoration.kept] + restoration.constant[:, None]
        seen[:, part] = restored.reshape(seen[:, part].shape)
        return seen

    return restore
