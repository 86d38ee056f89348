"""Observe a network on images of the target classes with ONNX Runtime, and make submodels of what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedcaptor.client.onnx_engine.fitting import Response, reconstruct_weights
from fedcaptor.client.onnx_engine.network import Network, Visit
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
)
from fedcaptor.common.onnx_graph import COTANGENT, IMAGES, sensitivity_of
from fedcaptor.common.plan import Plan
from fedcaptor.common.selection import PruningCurve
from fedcaptor.common.slicer import slice_state

_BATCH = 32  # images of one backward pass


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

        def logits(chosen: npt.NDArray[np.bool_], restored: list[Restoration]) -> npt.NDArray[np.float32]:
            return network.visit(x[chosen], {each.consumer.layer: _restoring(each) for each in restored})

        curves = calibrated(groups, classes, len(x), seen, curves, logits)
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
    places: dict[str, Indices] = {}
    rows: dict[tuple[str, str], list[npt.NDArray[np.float32]]] = {pair: [] for pair in _pairs(groups)}
    outputs: dict[str, list[npt.NDArray[np.float32]]] = {layer: [] for layer in layers}
    total = {layer: np.zeros(()) for layer in layers}
    signs = np.random.RandomState(sampler.seed % (1 << 32))  # draws what torch's generator does
    for start in range(0, len(x), _BATCH):
        part = x[start : start + _BATCH]
        cotangent = np.zeros((len(part), groups.classes), np.float32)
        drawn = (signs.randint(0, 1 << 32, (len(part), len(classes)), np.uint32) % 2).astype(np.float32) * 2 - 1
        cotangent[:, classes] = drawn - drawn.mean(1, keepdims=True)
        found = session.run({IMAGES: part, COTANGENT: cotangent})
        for group, consumer in consumers(groups):
            first, last = consumer.offset, consumer.offset + group.channels * consumer.taps
            read = found[readers[consumer.layer].input[0]][:, first:last]
            rows[group.name, consumer.layer].append(_sampled(read, group.channels, sampler, consumer.layer))
        for layer in layers:
            made = found[readers[layer].output[0]]
            places[layer] = sampler.positions(layer, int(np.prod(made.shape[2:])))
            outputs[layer].append(_sampled(made, made.shape[1], sampler, layer))
            total[layer] = total[layer] + found[sensitivity_of(layer)].astype(np.float64)
    return (
        {pair: np.concatenate(parts) for pair, parts in rows.items()},
        {layer: Response(np.concatenate(parts), places[layer]) for layer, parts in outputs.items()},
        {layer: each / len(x) for layer, each in total.items()},
    )


def _pairs(groups: ChannelGroups) -> list[tuple[str, str]]:
    return [(group.name, consumer.layer) for group, consumer in consumers(groups)]


def _sampled(values: npt.NDArray[np.float32], channels: int, sampler: Sampler, layer: str) -> npt.NDArray[np.float32]:
    """Take observations [R, channels] out of maps [N, channels · taps, …]."""
    maps = values.reshape(len(values), channels, -1)
    maps = maps[:, :, sampler.positions(layer, maps.shape[2])]
    return maps.transpose(0, 2, 1).reshape(-1, channels)


def _restoring(restoration: Restoration) -> Visit:
    """Make the visit that restores a consumer's channels."""

    def restore(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        seen, part, channels = x.copy(), restoration.part, len(restoration.constant)
        maps = seen[:, part].reshape(len(seen), channels, -1)
        restored = restoration.matrix @ maps[:, restoration.kept] + restoration.constant[:, None]
        seen[:, part] = restored.reshape(seen[:, part].shape)
        return seen

    return restore
