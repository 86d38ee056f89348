"""MACs and stored values of a network as a sum of products over its channel groups.

Most layers are one term, `coefficient × inputs × outputs`; only the terms that a group is in change when it shrinks, so
that removing channels is priced without counting everything again.
Seconds are a third kind where there is a latency table: a sum over layers, each looked up at its two lengths.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from fedcaptor.common.groups import ChannelGroups, Layer
from fedcaptor.common.latency import LatencyTable, LayerTimes

Dimension = tuple[int, tuple[tuple[str, int], ...]]
"""A tensor dimension's length: a constant, plus kept channels of groups times their taps."""

RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of a layer's inputs and outputs, where a latency table is measured; 0 stands for the smallest count."""

Price = tuple[float, ...]
"""MACs of one image, stored values, and seconds of one image where there is a latency table."""


@dataclass(frozen=True)
class Term:
    """Price a product of lengths: `price` (MACs, stored values) of one element times all `dimensions`."""

    price: tuple[int, int]
    dimensions: tuple[Dimension, ...]

    def size(self, counts: Mapping[str, int]) -> int:
        """Count the elements when `counts` channels of each group are kept."""
        size = 1
        for dimension in self.dimensions:
            size *= _length(dimension, counts)
        return size


@dataclass(frozen=True)
class Timed:
    """Hold a layer's measured seconds with the lengths to look them up by."""

    times: LayerTimes
    lengths: tuple[Dimension, Dimension]

    def seconds(self, counts: Mapping[str, int]) -> float:
        """Interpolate the layer's seconds for one image when `counts` channels of each group are kept."""
        inputs, outputs = self.lengths
        return self.times.at(_length(inputs, counts), _length(outputs, counts))


@dataclass(frozen=True)
class Costs:
    """Price networks by the channels that they keep.

    `of_group`: the terms that each group is in. `fixed`: the price of what no plan changes. `timed`: None without a
    latency table; `rest`: the table's seconds that no plan saves.
    """

    terms: tuple[Term, ...]
    of_group: Mapping[str, tuple[Term, ...]]
    fixed: tuple[int, int]
    timed: tuple[Timed, ...] | None = None
    rest: float = 0.0

    @classmethod
    def of(cls, groups: ChannelGroups, table: LatencyTable | None = None) -> Costs:
        """Build the cost model of a network. Raises ModelError for another network's latency table."""
        prices: dict[tuple[Dimension, ...], list[int]] = defaultdict(lambda: [0, 0])
        for layer in groups.layers:
            _add(prices, 0, layer.positions * layer.kernel, _layer_dimensions(layer))
        for dimensions in _tensor_dimensions(groups):
            _add(prices, 1, 1, dimensions)
        macs, values = prices.pop((), [0, 0])
        terms = tuple(Term((price[0], price[1]), dimensions) for dimensions, price in prices.items())
        of_group = {g.name: tuple(t for t in terms if g.name in _names(t)) for g in groups.groups}
        if table is None:
            return cls(terms, of_group, (macs, values))
        table.check(groups)
        timed = tuple(Timed(table.layers[name], lengths) for name, lengths in layer_lengths(groups).items())
        return cls(terms, of_group, (macs, values), timed, table.rest)

    def total(self, counts: Mapping[str, int]) -> Price:
        """Return the price of the network that keeps `counts` channels of every group."""
        sizes = [(term.price, term.size(counts)) for term in self.terms]
        macs = self.fixed[0] + sum(price[0] * size for price, size in sizes)
        values = self.fixed[1] + sum(price[1] * size for price, size in sizes)
        if self.timed is None:
            return macs, values
        return macs, values, self.rest + sum(layer.seconds(counts) for layer in self.timed)

    def saved(self, counts: Mapping[str, int], group: str, smaller: int) -> Price:
        """Return what is saved when `group` shrinks from its count to `smaller` channels."""
        after = {**counts, group: smaller}
        macs = values = 0
        for term in self.of_group[group]:
            gone = term.size(counts) - term.size(after)
            macs += term.price[0] * gone
            values += term.price[1] * gone
        if self.timed is None:
            return macs, values
        reading = (layer for layer in self.timed if any(group == g for _, parts in layer.lengths for g, _ in parts))
        return macs, values, sum(layer.seconds(counts) - layer.seconds(after) for layer in reading)

    def neighbours(self, group: str) -> set[str]:
        """Find the groups whose savings change with this one's count, itself among them.

        Groups that meet in a layer meet in its weights, so the terms know the neighbours in time as well.
        """
        return {group}.union(*(_names(term) for term in self.of_group[group]))


def predicted_latency_ratio(groups: ChannelGroups, table: LatencyTable, kept: Mapping[str, int]) -> float:
    """Divide the predicted seconds of `kept` channels (absent = all) by those of the full model."""
    costs, full = Costs.of(groups, table), {group.name: group.channels for group in groups.groups}
    return costs.total({**full, **kept})[2] / costs.total(full)[2]


def layer_lengths(groups: ChannelGroups) -> dict[str, tuple[Dimension, Dimension]]:
    """Return input and output length of each layer, by name: those that a latency table is measured over."""
    found: dict[str, tuple[Dimension, Dimension]] = {}
    for layer in groups.layers:
        *inputs, outputs = _layer_dimensions(layer)
        if layer.name not in found:
            found[layer.name] = (inputs[0] if inputs else (1, ()), outputs)
        elif inputs:  # behind a concatenation: one entry a group that it reads
            found[layer.name] = (_joined(found[layer.name][0], inputs[0]), outputs)
        else:
            found[layer.name] = ((1, ()), _joined(found[layer.name][1], outputs))
    return found


def measured_counts(dimension: Dimension, groups: ChannelGroups, multiple: int) -> tuple[int, ...]:
    """List the lengths that a latency table is measured at: multiples from the smallest that a plan can keep up to all.

    There is a single one where none can go.
    """
    fixed, parts = dimension
    free = sum(taps * groups.by_name[name].channels for name, taps in parts)
    if not free:
        return (fixed,)
    channels = 1 if parts[0][0] == groups.output.name else multiple
    unit = max(taps * groups.by_name[name].step(channels) for name, taps in parts)
    counts = {min(unit * max(round(ratio * free / unit), 1), free) for ratio in RATIOS} | {free}
    return tuple(fixed + count for count in sorted(counts))


def _joined(one: Dimension, other: Dimension) -> Dimension:
    """Add two lengths, as behind a concatenation."""
    return one[0] + other[0], one[1] + other[1]


def _length(dimension: Dimension, counts: Mapping[str, int]) -> int:
    """Evaluate a length when `counts` channels of each group are kept."""
    length, parts = dimension
    for group, taps in parts:
        length += taps * counts[group]
    return length


def _names(term: Term) -> set[str]:
    """Name the groups that a term depends on."""
    return {group for _, parts in term.dimensions for group, _ in parts}


def _add(
    prices: dict[tuple[Dimension, ...], list[int]], kind: int, coefficient: int, dimensions: list[Dimension]
) -> None:
    """Add a product to `prices`; constants and taps go into the coefficient, so that equal products are one term."""
    lengths: list[Dimension] = []
    for constant, parts in dimensions:
        if not parts:
            coefficient *= constant
        elif constant == 0 and len(parts) == 1:
            coefficient *= parts[0][1]
            lengths.append((0, ((parts[0][0], 1),)))
        else:
            lengths.append((constant, parts))
    prices[tuple(sorted(lengths))][kind] += coefficient


def _layer_dimensions(layer: Layer) -> list[Dimension]:
    """List the lengths whose product, times positions and kernel, gives a layer's MACs."""
    outputs: Dimension = (0, ((layer.outputs, layer.out_taps),)) if layer.outputs else (layer.full_outputs, ())
    if layer.depthwise:
        return [outputs]
    inputs = (0, ((layer.inputs, layer.in_taps),)) if layer.inputs else (layer.full_inputs * layer.in_taps, ())
    return [inputs, outputs]


def _tensor_dimensions(groups: ChannelGroups) -> list[list[Dimension]]:
    """List the dimensions of every tensor that counts as stored values (`ChannelGroups.parameters`)."""
    parts: dict[tuple[str, int], list[tuple[str, int, int]]] = defaultdict(list)
    for group in groups.groups:
        for piece in group.slices:
            parts[piece.tensor, piece.dim].append((group.name, piece.taps, group.channels * piece.taps))
    return [
        [
            (size - sum(full for *_, full in parts[name, dim]), tuple((g, taps) for g, taps, _ in parts[name, dim]))
            for dim, size in enumerate(shape)
        ]
        for name, shape in groups.tensors.items()
        if math.prod(shape) and shape
    ]
