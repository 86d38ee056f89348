"""Budgets that hold as measured: plans are corrected by the bytes of real files and the seconds of real networks.

Neither depends on the weights, so that sliced networks stand in for reconstructed ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from fedcaptor.common.arrays import Images, Indices
from fedcaptor.common.costs import predicted_latency_ratio
from fedcaptor.common.errors import PlanError
from fedcaptor.common.latency import TORCH, LatencyTable
from fedcaptor.common.plan import Plan
from fedcaptor.common.planner import Budget, FileSize, allocate, smallest_counts
from fedcaptor.common.timing import LatencyRatio
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.base import Submodel as Pruned
from fedcaptor.common.torch_engine.export import Format, content
from fedcaptor.common.torch_engine.factory import sliced
from fedcaptor.common.torch_engine.latency import measured_latency_ratio
from fedcaptor.common.torch_engine.standalone import Standalone
from fedcaptor.common.torch_engine.strategies import PreparedStrategy

ATTEMPTS = 4
AIM = 0.97  # of the latency budget: what is measured twice differs by that much
STEP = 0.2  # of the way back from a network that is fast enough, at least: nobody wants the smallest one
NEAR = 0.85  # of the latency budget: a faster network was cut too far, a larger one is looked for
LESS, HARDLY = 0.5, 0.9  # to less than half of the MACs in more than nine tenths of the time: cut in vain
ROOM = 0.92  # of the time of the larger network that a plan is compared with to tell whether it was cut in vain


@dataclass(frozen=True, eq=False)
class Files:
    """What is to be written: `formats`; `images` that eight bits are calibrated on; `pixels` as in `Standalone`."""

    formats: tuple[Format, ...]
    images: Images
    pixels: bool = True

    def sizes(self, pruned: Pruned) -> tuple[FileSize, ...]:
        """What files of this network take beside its values, by making them."""
        values = pruned.base.groups.parameters(pruned.plan.counts())
        standalone, found = Standalone.of(pruned, self.pixels), []
        for form in self.formats:
            size = len(content(standalone, form, self.images, compare=False)[0])
            found.append(FileSize(form.name, form.value_bytes, size - form.value_bytes * values))
        return tuple(found)


def with_file_sizes(base: BaseModel, classes: Indices, budget: Budget, files: Files) -> Budget:
    """A budget of bytes that knows what each format takes beside its values, from files of the smallest network."""
    if budget.bytes is None:
        return budget
    return replace(budget, files=files.sizes(_smallest(base, classes, budget.multiple)))


def corrected(selection: PreparedStrategy, budget: Budget, files: Files) -> Budget:
    """The budget to plan by, so that files of its plan have at most the bytes, and its network takes at most the time,
    that `budget` says.

    Raises PlanError, which says by how much, where no plan is found that holds.
    """
    if budget.bytes is not None:
        budget = _for_bytes(selection, budget, budget.bytes, files)
    if (most := latency_here(budget)) is not None and budget.table is not None:
        budget = _for_latency(selection, budget, most, budget.table)
    return budget


def latency_here(budget: Budget) -> float | None:
    """The latency budget that torch on this machine is held to. None where there is none, or the table is of another
    runtime: what a phone takes is not told by what is measured here.
    """
    return budget.latency if budget.table is not None and budget.table.runtime == TORCH else None


def require_size(name: str, size: int, most: int | None) -> None:
    """Raises PlanError for a file that is larger than a budget."""
    if most is not None and size > most:
        raise PlanError(
            f"bytes budget is {most}, the {name} file has {size}, {size - most} more: plan for this format (the "
            "argument `formats`, or --out), raise the budget, or write it in half precision"
        )


def require_latency(found: LatencyRatio, most: float | None) -> None:
    """Raises PlanError for a network that is slower than a budget by more than its measurements are apart."""
    if most is not None and found.low > most:
        raise PlanError(
            f"latency budget is {most}, measured are {found.median:.3f} ({found.low:.3f} to {found.high:.3f}): raise "
            "the budget, or measure on an idle machine"
        )


def latency_figures(found: LatencyRatio) -> dict[str, float]:
    """A measured latency ratio with its quartiles, by name."""
    names = ("latency_ratio", "latency_ratio_low", "latency_ratio_high")
    return dict(zip(names, (round(value, 4) for value in (found.median, found.low, found.high)), strict=True))


def _for_bytes(selection: PreparedStrategy, budget: Budget, most: int, files: Files) -> Budget:
    largest = 0
    for _ in range(ATTEMPTS):
        planned = _planned(selection, budget)
        values, sizes = planned.base.groups.parameters(planned.plan.counts()), files.sizes(planned)
        largest = max(found.bytes(values) for found in sizes)
        if largest <= most:
            return budget
        known = zip(budget.files, sizes, strict=True)
        budget = replace(
            budget, files=tuple(replace(own, overhead=max(own.overhead, now.overhead)) for own, now in known)
        )
    raise PlanError(
        f"bytes budget is {most}, after {ATTEMPTS} plans a file has {largest - most} more: raise the budget"
    )


class _Point(NamedTuple):
    """A network's seconds by the table and as measured, and its MACs, each as a ratio of the full network's."""

    predicted: float
    measured: float
    macs: float

    def hardly_faster(self, larger: _Point) -> bool:
        """Whether cutting from `larger` to here costs most of its MACs and saves next to no time."""
        return self.macs < LESS * larger.macs and self.measured > HARDLY * larger.measured


def _for_latency(selection: PreparedStrategy, budget: Budget, most: float, table: LatencyTable) -> Budget:
    """Interpolate between a network that is too slow and one that is fast enough, at first the smallest one."""
    base = selection.base

    def point(pruned: Pruned) -> _Point:
        predicted = predicted_latency_ratio(base.groups, table, pruned.plan.counts())
        measured = measured_latency_ratio(pruned.module, base.module, base.groups.input_shape)
        return _Point(predicted, measured.median, pruned.macs_ratio)

    slow, fast, best = _Point(1.0, 1.0, 1.0), point(_smallest(base, selection.classes, budget.multiple)), None
    if fast.measured > most:
        raise PlanError(
            f"latency budget is {most}, the smallest network ({fast.macs:.1%} of the MACs) was measured at "
            f"{fast.measured:.3f}: more cutting does not help, raise the budget"
        )
    for _ in range(ATTEMPTS):
        tried = replace(budget, latency=_between(slow, fast, AIM * most, STEP))
        found = point(_planned(selection, tried))
        if found.measured <= most:
            fast, best = found, tried
            if found.measured >= NEAR * most:
                break
        else:
            slow = found
            if best is None and fast.hardly_faster(slow):
                break
    if best is None:
        raise _in_vain(most, slow, fast)
    roomier = _planned(selection, replace(budget, latency=_between(slow, fast, fast.measured / ROOM)))
    if fast.macs < LESS * roomier.macs_ratio and fast.hardly_faster(larger := point(roomier)):
        raise _in_vain(most, larger, fast)
    return best


def _between(slow: _Point, fast: _Point, measured: float, least: float = 0.0) -> float:
    """The seconds by the table at which `measured` is expected, on the line through both points.

    It is `least` of the way back to the slow one, at least.
    """
    share = (measured - fast.measured) / max(slow.measured - fast.measured, 1e-9)
    return min(fast.predicted + max(share, least) * (slow.predicted - fast.predicted), 1.0)


def _in_vain(most: float, slow: _Point, fast: _Point) -> PlanError:
    """Word the error for a budget that takes much cutting for little time."""
    return PlanError(
        f"latency budget is {most}, measured are {slow.measured:.3f} with {slow.macs:.1%} of the MACs and "
        f"{fast.measured:.3f} with {fast.macs:.1%}: more cutting hardly helps, raise the budget to "
        f"{math.ceil(100 * slow.measured / AIM) / 100:.2f}"
    )


def _planned(selection: PreparedStrategy, budget: Budget) -> Pruned:
    base = selection.base
    return sliced(base, allocate(base.groups, selection.curves, selection.classes, budget))


def _smallest(base: BaseModel, classes: Indices, multiple: int) -> Pruned:
    counts = smallest_counts(base.groups, len(classes), multiple)
    kept = {group.name: range(counts[group.name]) for group in base.groups.prunable}
    return sliced(base, Plan.of(base.groups, {**kept, base.groups.output.name: classes}))
