"""Explain a plan: what each group kept, and what removing more of it would lose and save."""

from __future__ import annotations

from collections.abc import Mapping

from fedcaptor.common.costs import Costs
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.plan import Plan
from fedcaptor.common.planner import next_count
from fedcaptor.common.selection import PruningCurve


def explain(
    groups: ChannelGroups, curves: Mapping[str, PruningCurve], chosen: Plan, multiple: int
) -> list[dict[str, float | int | str]]:
    """Explain each group's count: its share of the full model, and what removing its next block would lose and save."""
    costs, full = Costs.of(groups), {group.name: group.channels for group in groups.groups}
    counts, price = full | chosen.counts(), costs.total(full)
    rows: list[dict[str, float | int | str]] = []
    for name, curve in curves.items():
        channels, kept = full[name], counts[name]
        smaller = next_count(kept, multiple)
        saved, share = costs.saved(counts, name, smaller), costs.saved(full, name, 0)
        loss = curve.loss(kept, smaller)
        rows.append(
            {
                "group": name,
                "channels": channels,
                "kept": kept,
                "share_of_macs": share[0] / price[0],
                "share_of_parameters": share[1] / price[1],
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
