"""Planner: one global allocation of channels over all layers, by loss per MAC saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import PlanError
from common.groups import ChannelGroups
from common.plan import Indices, Plan
from common.selection import RemovalCurve


@dataclass(frozen=True)
class Budget:
    """`macs`: ratio of the full model's MACs, in (0, 1]. Kept counts are multiples of `multiple` (Torch-Pruning users
    report that odd counts run slower than the uncut layer), or all channels of the group.
    """

    macs: float
    multiple: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.macs <= 1:
            raise PlanError(f"MACs budget is {self.macs}, must lie in (0, 1]: give a ratio of the full model's MACs")
        if self.multiple < 1:
            raise PlanError(f"multiple is {self.multiple}, must be at least 1")


def plan(groups: ChannelGroups, curves: Mapping[str, RemovalCurve], classes: Indices, budget: Budget) -> Plan:
    """Greedy over all groups: remove the block of channels with the least loss per MAC saved until the budget holds.

    The curves estimate one loss, so they are comparable across layers. No group is emptied.
    Raises PlanError naming the nearest possible ratio when even the smallest model is over the budget.
    """
    counts = {group.name: group.channels for group in groups.prunable}
    fixed = {groups.output.name: len(classes)}
    full, now = groups.macs(), groups.macs(counts | fixed)
    while now > budget.macs * full:
        best: tuple[float, str, int, int] | None = None
        for name, curve in curves.items():
            smaller = _next_count(counts[name], budget.multiple)
            if smaller == counts[name]:
                continue
            removed = len(curve.order) - counts[name]
            loss = float(curve.cost[removed : removed + counts[name] - smaller].sum())
            macs = groups.macs(counts | fixed | {name: smaller})
            saved = now - macs
            if saved > 0 and (best is None or loss / saved < best[0]):
                best = (loss / saved, name, smaller, macs)
        if best is None:
            raise PlanError(
                f"MACs budget is {budget.macs:.4f} of the full model, the nearest possible is {now / full:.4f} "
                f"with multiples of {budget.multiple}: raise the budget or lower the multiple"
            )
        _, name, counts[name], now = best
    kept = {name: curve.kept(counts[name]) for name, curve in curves.items()}
    return Plan.of(groups, kept | {groups.output.name: classes})


def _next_count(count: int, multiple: int) -> int:
    """The next smaller multiple, `count` itself when there is none above zero."""
    smaller = (count - 1) // multiple * multiple
    return smaller if smaller > 0 else count
