"""Explain a plan: what each group kept, and what removing more of it would lose and save."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedcaptor.common.costs import Costs
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.plan import Plan
from fedcaptor.common.planner import next_count
from fedcaptor.common.selection import PruningCurve


def explain(
    groups: ChannelGroups, curves: Mapping[str, PruningCurve], chosen: Plan, multiple: int
) -> list[dict[str, float | int | str]]:
    """Explain each group's count: its share of the full model, and what removing its next block would lose and save.

    Each layer's MACs and values count in the group that it makes alone, so that the shares of all groups, with those of
    the classes and of layers whose channels always stay, sum to 1.
    """
    costs, full = Costs.of(groups), {group.name: group.channels for group in groups.groups}
    counts, price = full | chosen.counts(), costs.total(full)
    rows: list[dict[str, float | int | str]] = []
    for name, curve in curves.items():
        channels, kept = full[name], counts[name]
        smaller = next_count(kept, groups.by_name[name].step(multiple))
        saved = costs.saved(counts, name, smaller)
        loss = curve.loss(kept, smaller)
        rows.append(
            {
                "group": name,
                "channels": channels,
                "kept": kept,
                "share_of_macs": _macs(groups, name) / price[0],
                "share_of_parameters": _values(groups, name) / price[1],
                "next_loss_per_mac": loss / saved[0] if saved[0] else 0.0,
                "next_loss_per_parameter": loss / saved[1] if saved[1] else 0.0,
                "why": _reason(
                    kept,
                    channels,
                    smaller,
                    curve.loss(channels, kept),
                    loss,
                    saved[0] / price[0],
                    saved[1] / price[1],
                ),
            }
        )
    return rows


def _macs(groups: ChannelGroups, name: str) -> int:
    """Count the MACs of the layers that make a group's channels."""
    return sum(groups.layer_macs(layer, {}) for layer in groups.layers if layer.outputs == name)


def _values(groups: ChannelGroups, name: str) -> int:
    """Count the stored values along a group's channels as outputs: dimension 0 of weights, biases and batch norms."""
    group = groups.by_name[name]
    places = [part for part in group.slices if part.dim == 0]
    return sum(group.channels * part.taps * math.prod(groups.tensors[part.tensor][1:]) for part in places)


def _reason(kept: int, channels: int, smaller: int, spent: float, loss: float, macs: float, values: float) -> str:
    """Word one row of `explain`."""
    past = "kept whole" if kept == channels else f"the removed channels cost a loss of {spent:.3g}"
    if kept == smaller:
        return f"at its smallest multiple; {past}"
    dearer = ", dearer than what other layers gave" if kept == channels else ""
    return (
        f"{past}; going on to {smaller} would add {loss:.3g} for {macs:.2%} of the MACs and {values:.2%} of the "
        f"parameters{dearer}"
    )
