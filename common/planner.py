"""The planner allocates channels globally over all layers, by loss per unit of what is over the budget."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fedcaptor.common.arrays import Indices
from fedcaptor.common.costs import Costs, Price
from fedcaptor.common.errors import PlanError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.latency import LatencyTable
from fedcaptor.common.plan import Plan
from fedcaptor.common.selection import PruningCurve

LARGE = 0.01  # of the full model: after a block that saves more, what is left of the budget goes to other layers


@dataclass(frozen=True)
class FileSize:
    """Say what files of one format take: `per_value` bytes for each stored value, and `overhead` bytes beside them."""

    name: str
    per_value: float
    overhead: int

    def bytes(self, values: float) -> int:
        """Return the size of a file that stores so many values."""
        return math.ceil(self.per_value * values) + self.overhead


@dataclass(frozen=True)
class Budget:
    """Limit what a submodel may cost; all limits that are given hold together.

    Attributes:
        macs: Ratio of the full model's MACs, in (0, 1].
        multiple: Kept channels are multiples of it (Torch-Pruning users report that odd counts run slower than the
            unpruned layer), or all channels of the group.
        parameters: Ratio of the full model's stored values, in (0, 1].
        bytes: Size of each of the submodel's files.
        files: Formats of those files; where none is given, safetensors in half precision
            (`ChannelGroups.file_bytes`).
        latency: Ratio of the full model's seconds, in (0, 1], as `table` predicts them.
        table: The latency table of the network; only `latency` needs it.

    Raises:
        PlanError: No limit is given, or one is outside its bounds.
    """

    macs: float | None = None
    multiple: int = 8
    parameters: float | None = None
    bytes: int | None = None
    latency: float | None = None
    table: LatencyTable | None = field(default=None, repr=False)
    files: tuple[FileSize, ...] = ()

    def __post_init__(self) -> None:
        if self.macs is None and self.parameters is None and self.bytes is None and self.latency is None:
            raise PlanError("the budget is empty: give at least one of macs, parameters, bytes and latency")
        for name, ratio in (("MACs", self.macs), ("parameters", self.parameters), ("latency", self.latency)):
            if ratio is not None and not 0 < ratio <= 1:
                raise PlanError(f"{name} budget is {ratio}, must lie in (0, 1]: give a ratio of the full model's")
        if self.bytes is not None and self.bytes < 1:
            raise PlanError(f"bytes budget is {self.bytes}, must be at least 1: give the size of the submodel's file")
        if self.multiple < 1:
            raise PlanError(f"multiple is {self.multiple}, must be at least 1")

    def costs(self, groups: ChannelGroups) -> Costs:
        """Build the cost model that prices all that the budget limits.

        Raises PlanError for a latency without a table, ModelError for another network's table.
        """
        if self.latency is not None and self.table is None:
            raise PlanError(f"latency budget is {self.latency} without a latency table: measure and give one")
        return Costs.of(groups, None if self.latency is None else self.table)

    def limits(self, groups: ChannelGroups, full: Price) -> Price:
        """Return the most MACs, stored values and, with a latency, seconds; `full`: those of the full model."""
        macs = math.inf if self.macs is None else self.macs * full[0]
        values = math.inf if self.parameters is None else self.parameters * full[1]
        if self.bytes is not None:
            values = min(values, *((self.bytes - file.overhead) / file.per_value for file in self._files(groups)))
        return (macs, values) if self.latency is None else (macs, values, self.latency * full[2])

    def broken(self, groups: ChannelGroups, counts: Mapping[str, int]) -> list[str]:
        """Say in words which limits `counts` kept channels break, each with its value at `counts`."""
        costs, whole = self.costs(groups), {group.name: group.channels for group in groups.groups}
        prices = zip(costs.total({**whole, **counts}), costs.total(whole), strict=True)
        words, kinds = [], [("MACs", self.macs), ("parameters", self.parameters), ("latency", self.latency)]
        for (name, limit), (now, full) in zip(kinds, prices, strict=False):  # no seconds without a latency
            if limit is not None and now > limit * full:  # rounded up: the value named is one that works
                words.append(f"{name} budget is {limit:.4g} of the full model, {math.ceil(now / full * 1e4) / 1e4:.4g}")
        for file in self._files(groups):
            size = file.bytes(groups.parameters(counts))
            if self.bytes is not None and size > self.bytes:
                words.append(f"bytes budget is {self.bytes}, {size}{file.name and f' as {file.name}'}")
        return words

    def _files(self, groups: ChannelGroups) -> tuple[FileSize, ...]:
        return self.files or (FileSize("", 2, groups.file_overhead),)


def allocate(groups: ChannelGroups, curves: Mapping[str, PruningCurve], classes: Indices, budget: Budget) -> Plan:
    """Allocate the budget over all groups: remove the block of channels with the least loss per unit saved, repeatedly.

    The unit is the full model's MACs, its stored values, its predicted seconds, or the sum of the ratios that are over
    the budget. The curves estimate one loss, so they are comparable across layers. No group is emptied. What a large
    last block leaves of the budget goes back to others. A larger budget of one kind loses no more than a smaller one;
    with several kinds the layers may trade.

    Args:
        groups: The network's channel groups.
        curves: Pruning curve of each group that may shrink, by name.
        classes: Target classes, the labels that the submodel answers with.
        budget: What the submodel may cost.

    Raises:
        PlanError: Even the smallest model breaks the budget; every limit that it breaks is named with the nearest
            possible value.
    """
    return _Path(groups, curves, classes, budget).down_to(budget)


def require_possible(groups: ChannelGroups, classes: int, budget: Budget) -> None:
    """Check a budget before long work: raises PlanError when even the smallest model of so many classes breaks it.

    A latency is checked by `allocate` alone: more channels may take less time.
    """
    counts = smallest_counts(groups, classes, budget.multiple)
    if budget.latency is None and budget.broken(groups, counts):
        raise _refusal(groups, counts, budget)


def smallest_counts(groups: ChannelGroups, classes: int, multiple: int) -> dict[str, int]:
    """Return the channels of each group in the smallest network that a plan can leave."""
    return {group.name: group.smallest(multiple) for group in groups.prunable} | {groups.output.name: classes}


def ladder(
    groups: ChannelGroups,
    curves: Mapping[str, PruningCurve],
    classes: Indices,
    budget: Budget,
    ratios: Collection[float],
) -> dict[float, Plan]:
    """Plan a ladder of MACs ratios within `budget`, smallest first, from one path: each is what `allocate` gives.

    Impossible ratios are absent. Raises PlanError when none is possible.
    """
    if not ratios:
        raise PlanError("the ladder has 0 MACs ratios, at least 1 is needed: give some")
    path, found = _Path(groups, curves, classes, budget), {}
    for ratio in sorted(set(ratios), reverse=True):
        try:
            found[ratio] = path.down_to(replace(budget, macs=min(ratio, budget.macs or 1.0)))
        except PlanError:
            if not found:
                raise
            break
    return dict(reversed(found.items()))


class _Path:
    """Remove block after block. What goes next depends on which kinds are over the budget, not on how far.

    `large`: the group of the last block and the loss, if that saved much: then others may get theirs back.
    """

    def __init__(
        self, groups: ChannelGroups, curves: Mapping[str, PruningCurve], classes: Indices, budget: Budget
    ) -> None:
        self.groups, self.curves, self.classes = groups, curves, classes
        self.steps = {name: groups.by_name[name].step(budget.multiple) for name in curves}
        self.costs = budget.costs(groups)
        self.counts = {group.name: group.channels for group in groups.groups}
        self.full = self.costs.total(self.counts)
        self.counts[groups.output.name] = len(np.unique(classes))
        self.now = self.costs.total(self.counts)
        self.names = list(curves)
        self.loss, self.saved = np.zeros(len(curves)), np.zeros((len(curves), len(self.full)))
        self.large: tuple[str, float] | None = None
        for name in self.names:
            self._price(name)

    def down_to(self, budget: Budget) -> Plan:
        """Remove blocks until the budget holds, and return the plan. Raises PlanError when it cannot."""
        limits = budget.limits(self.groups, self.full)
        while any(over := _over(self.now, limits)):
            gain = self.saved @ (np.array(over) / self.full)
            if not (gain > 0).any():  # no single block is faster, several may be
                gain = self.saved[:, 0]
            able = np.flatnonzero(gain > 0)
            if len(able) == 0:
                raise _refusal(self.groups, self.counts, budget)
            with np.errstate(over="ignore"):  # of a block that saves next to nothing
                self._remove(int(able[np.argmin(self.loss[able] / gain[able])]))
        counts = self._filled(limits, *self.large) if self.large else self.counts
        kept = {name: curve.kept(counts[name]) for name, curve in self.curves.items()}
        return Plan.of(self.groups, kept | {self.groups.output.name: self.classes})

    def _remove(self, row: int) -> None:
        """Remove the next block of the group in this row."""
        name = self.names[row]
        large = (self.saved[row] > LARGE * np.array(self.full)).any()
        self.large = (name, float(self.loss[row])) if large else None
        self.counts[name] = next_count(self.counts[name], self.steps[name])
        self.now = self.costs.total(self.counts)
        for neighbour in self.costs.neighbours(name) & self.curves.keys():
            self._price(neighbour)

    def _filled(self, limits: Price, last: str, lost: float) -> dict[str, int]:
        """Put blocks back, the one with the most loss per unit first, until one does not fit; returns the counts.

        None goes to the group that shrank last, nor more than that `lost`: a larger budget, which it fits, is to lose
        no more.
        """
        counts = dict(self.counts)
        while (block := self._dearest(counts, limits, last)) is not None:
            name, count, regained = block
            larger = counts | {name: count}
            if regained > lost or any(_over(self.costs.total(larger), limits)):
                break
            counts, lost = larger, lost - regained
        return counts

    def _dearest(self, counts: Mapping[str, int], limits: Price, last: str) -> tuple[str, int, float] | None:
        """Find the removed block with the most loss per unit: group, count with it, loss; None if none has a loss."""
        best, found, unit = 0.0, None, np.isfinite(limits) / np.array(self.full)
        for name, curve in self.curves.items():
            smaller, step = counts[name], self.steps[name]
            count = min(len(curve.order), (smaller // step + 1) * step)
            if count == smaller or name == last:
                continue
            saved, loss = self.costs.saved({**counts, name: count}, name, smaller), curve.loss(count, smaller)
            ratio = loss / max(float(saved @ unit), 1e-12)
            if ratio > best:
                best, found = ratio, (name, count, loss)
        return found

    def _price(self, name: str) -> None:
        """Record what removing the group's next block would lose and save."""
        row, count = self.names.index(name), self.counts[name]
        smaller = next_count(count, self.steps[name])
        self.loss[row] = self.curves[name].loss(count, smaller)
        self.saved[row] = self.costs.saved(self.counts, name, smaller)


def _refusal(groups: ChannelGroups, counts: Mapping[str, int], budget: Budget) -> PlanError:
    """Word the error for a budget that `counts`, the smallest possible, break."""
    broken = "; ".join(f"{words} is the nearest possible" for words in budget.broken(groups, counts))
    return PlanError(f"{broken} with multiples of {budget.multiple}: raise the budget or lower the multiple")


def _over(price: Price, limits: Price) -> list[bool]:
    """Tell for each kind of price whether it is over its limit."""
    return [now > limit for now, limit in zip(price, limits, strict=True)]


def next_count(count: int, multiple: int) -> int:
    """Return the next smaller multiple, `count` itself when there is none above zero."""
    smaller = (count - 1) // multiple * multiple
    return smaller if smaller > 0 else count
