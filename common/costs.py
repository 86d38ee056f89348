"""MACs and stored values of a network as a sum of products over its groups, so that a cut is priced without a recount.

Most layers are one term, `coefficient × inputs × outputs`; only the terms that a group is in change when it is cut.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from common.groups import ChannelGroups, Layer

Dimension = tuple[int, tuple[tuple[str, int], ...]]
"""A length: a constant, and kept channels of groups times their taps."""

Price = tuple[int, int]
"""MACs of one image, stored values."""


@dataclass(frozen=True)
class Term:
    """`price` of one element times the lengths of all `dimensions`."""

    price: Price
    dimensions: tuple[Dimension, ...]

    def size(self, counts: Mapping[str, int]) -> int:
        """Number of elements when `counts` channels of each group are kept."""
        size = 1
        for constant, parts in self.dimensions:
            length = constant
            for group, taps in parts:
                length += taps * counts[group]
            size *= length
        return size


@dataclass(frozen=True)
class Costs:
    """`of_group`: the terms that each group is in. `fixed`: the price of what no plan changes."""

    terms: tuple[Term, ...]
    of_group: Mapping[str, tuple[Term, ...]]
    fixed: Price

    @classmethod
    def of(cls, groups: ChannelGroups) -> Costs:
        prices: dict[tuple[Dimension, ...], list[int]] = defaultdict(lambda: [0, 0])
        for layer in groups.layers:
            _add(prices, 0, layer.positions * layer.kernel, _layer_dimensions(layer))
        for dimensions in _tensor_dimensions(groups):
            _add(prices, 1, 1, dimensions)
        macs, values = prices.pop((), [0, 0])
        terms = tuple(Term((price[0], price[1]), dimensions) for dimensions, price in prices.items())
        of_group = {g.name: tuple(t for t in terms if g.name in _names(t)) for g in groups.groups}
        return cls(terms, of_group, (macs, values))

    def total(self, counts: Mapping[str, int]) -> Price:
        """Price of the network that keeps `counts` channels of every group."""
        sizes = [(term.price, term.size(counts)) for term in self.terms]
        return (
            self.fixed[0] + sum(price[0] * size for price, size in sizes),
            self.fixed[1] + sum(price[1] * size for price, size in sizes),
        )

    def saved(self, counts: Mapping[str, int], group: str, smaller: int) -> Price:
        """What cutting `group` down to `smaller` channels saves."""
        after = {**counts, group: smaller}
        macs = values = 0
        for term in self.of_group[group]:
            gone = term.size(counts) - term.size(after)
            macs += term.price[0] * gone
            values += term.price[1] * gone
        return macs, values

    def neighbours(self, group: str) -> set[str]:
        """Groups whose savings change with this one's count, itself among them."""
        return {group}.union(*(_names(term) for term in self.of_group[group]))


def _names(term: Term) -> set[str]:
    return {group for _, parts in term.dimensions for group, _ in parts}


def _add(
    prices: dict[tuple[Dimension, ...], list[int]], kind: int, coefficient: int, dimensions: list[Dimension]
) -> None:
    """Constants and taps go into the coefficient, so that equal products are one term."""
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
    outputs: Dimension = (0, ((layer.outputs, 1),)) if layer.outputs else (layer.full_outputs, ())
    if layer.depthwise:
        return [outputs]
    inputs = (0, ((layer.inputs, layer.in_taps),)) if layer.inputs else (layer.full_inputs * layer.in_taps, ())
    return [inputs, outputs]


def _tensor_dimensions(groups: ChannelGroups) -> list[list[Dimension]]:
    """Of every tensor that counts as stored values (`ChannelGroups.parameters`)."""
    parts: dict[tuple[str, int], list[tuple[str, int, int]]] = defaultdict(list)
    for group in groups.groups:
        for cut in group.cuts:
            parts[cut.tensor, cut.dim].append((group.name, cut.taps, group.channels * cut.taps))
    return [
        [
            (size - sum(full for *_, full in parts[name, dim]), tuple((g, taps) for g, taps, _ in parts[name, dim]))
            for dim, size in enumerate(shape)
        ]
        for name, shape in groups.tensors.items()
        if math.prod(shape) and shape
    ]
