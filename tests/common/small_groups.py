"""A network small enough to plan by hand: two convolutions and a flatten into three classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedcaptor.common.groups import ChannelGroups, Consumer, Group, Layer, TensorSlice
from fedcaptor.common.plan import Plan
from fedcaptor.common.selection import PruningCurve


def small_groups(a: int = 4, b: int = 8, classes: int = 3) -> ChannelGroups:
    """MACs 144·a + 36·a·b + 2·b·classes; stored values 9·a + 9·a·b + 2·b·classes + classes."""
    return ChannelGroups(
        "small",
        (1, 4, 4),
        (
            Group("a", a, (TensorSlice("a.weight", 0), TensorSlice("b.weight", 1)), ("a",), (Consumer("b"),)),
            Group("b", b, (TensorSlice("b.weight", 0), TensorSlice("c.weight", 1, 2)), ("b",), (Consumer("c", 2),)),
            Group("c", classes, (TensorSlice("c.weight", 0), TensorSlice("c.bias", 0)), ("c",), (), True),
        ),
        (
            Layer("a", 16, 9, 1, a, None, "a"),
            Layer("b", 4, 9, a, b, "a", "b"),
            Layer("c", 1, 1, b, classes, "b", "c", False, 2),
        ),
        {
            "a.weight": (a, 1, 3, 3),
            "b.weight": (b, a, 3, 3),
            "c.weight": (classes, 2 * b),
            "c.bias": (classes,),
            "seen": (),
        },
    )


def even_curves(groups: ChannelGroups, **cost: float) -> dict[str, PruningCurve]:
    """Channels go in the order of their numbers, each at the same loss."""
    return {
        name: PruningCurve(np.arange(groups.by_name[name].channels), np.full(groups.by_name[name].channels, each))
        for name, each in cost.items()
    }


def lost(curves: Mapping[str, PruningCurve], chosen: Plan) -> float:
    """What the plan's removed channels cost together."""
    return sum(float(c.cost[: len(c.cost) - len(chosen.kept[name])].sum()) for name, c in curves.items())
