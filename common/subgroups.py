"""Derive the channel groups of a sliced network from those of the full one and the plan, without tracing again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedcaptor.common.groups import ChannelGroups, Group, Layer
from fedcaptor.common.plan import Plan
from fedcaptor.common.slicer import kept_elements


def subgroups(groups: ChannelGroups, plan: Plan) -> ChannelGroups:
    """Return what `trace` would find in the network that `plan` leaves: the same groups, smaller.

    Offsets behind a concatenation move by what the plan removed before them.
    """
    counts, kept = plan.counts(), kept_elements(groups, plan)

    def moved(tensor: str, dim: int, offset: int) -> int:
        elements = kept.get((tensor, dim))
        return offset if elements is None else int(np.searchsorted(elements, offset))

    def smaller(group: Group) -> Group:
        return replace(
            group,
            channels=counts.get(group.name, group.channels),
            slices=tuple(replace(s, offset=moved(s.tensor, s.dim, s.offset)) for s in group.slices),
            consumers=tuple(replace(c, offset=moved(f"{c.layer}.weight", 1, c.offset)) for c in group.consumers),
        )

    def lighter(layer: Layer) -> Layer:
        return replace(
            layer,
            full_inputs=counts.get(layer.inputs, layer.full_inputs) if layer.inputs else layer.full_inputs,
            full_outputs=counts.get(layer.outputs, layer.full_outputs) if layer.outputs else layer.full_outputs,
        )

    return replace(
        groups,
        groups=tuple(smaller(group) for group in groups.groups),
        layers=tuple(lighter(layer) for layer in groups.layers),
        tensors=groups.shapes(counts),
    )


def composed(groups: ChannelGroups, first: Plan, second: Plan) -> Plan:
    """Join two plans into one of the full network: `first`, then `second`, which prunes what `first` leaves."""
    kept = dict(first.kept)
    for name, index in second.kept.items():
        kept[name] = kept[name][index] if name in kept else index
    return Plan.of(groups, kept)
