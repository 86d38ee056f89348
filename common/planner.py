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


def explain(
    groups: ChannelGroups, curves: Mapping[str, RemovalCurve], chosen: Plan, multiple: int
) -> list[dict[str, float | int | str]]:
    """Why each group kept what it kept: its share of the full model's MACs and what the next cut would have cost."""
    counts = chosen.counts()
    now, full = groups.macs(counts), groups.macs()
    rows: list[dict[str, float | int | str]] = []
    for name, curve in curves.items():
        channels, kept = groups.by_name[name].channels, counts.get(name, groups.by_name[name].channels)
        smaller = _next_count(kept, multiple)
        saved = now - groups.macs(counts | {name: smaller})
        removed = channels - kept
        loss = float(curve.cost[removed : removed + kept - smaller].sum())
        spent = float(curve.cost[:removed].sum())
        rows.append(
            {
                "group": name,
                "channels": channels,
                "kept": kept,
                "share_of_macs": (full - groups.macs({name: 0})) / full,
                "next_loss_per_mac": loss / saved if saved else 0.0,
                "why": _reason(kept, channels, smaller, spent, loss),
            }
        )
    return rows


def _reason(kept: int, channels: int, smaller: int, spent: float, loss: float) -> str:
    if kept == channels:
        return f"kept whole: {smaller} of {channels} would add a loss of {loss:.3g}, dearer per MAC than other layers"
    if kept == smaller:
        return f"at its smallest multiple; the removed channels cost a loss of {spent:.3g}"
    return f"the removed channels cost a loss of {spent:.3g}; going on to {smaller} would add {loss:.3g}"
