"""A latency budget is held as measured, whatever the table predicts, or refused with what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedcaptor import _measured_budgets
from fedcaptor._measured_budgets import Files, corrected, require_latency
from fedcaptor.common.costs import predicted_latency_ratio
from fedcaptor.common.errors import PlanError
from fedcaptor.common.latency import LatencyTable, LayerTimes
from fedcaptor.common.planner import Budget
from fedcaptor.common.timing import LatencyRatio
from fedcaptor.common.torch_engine.strategies import PreparedStrategy, Task, prepare
from tests import tiny

FILES = Files((), np.zeros((0, 12, 12, 1), np.uint8))


@pytest.fixture
def selection(bars: tuple[Path, Path]) -> PreparedStrategy:
    base = tiny.base_model(bars[1])
    return prepare("l1", Task(base, np.array([1, 4]), tiny.images(4, 0)[0], tiny.images(4, 0)[0]))


def budget(selection: PreparedStrategy, latency: float) -> Budget:
    """With a table that takes all time for proportional to channels."""
    groups = selection.base.groups
    layers = {one.name: LayerTimes((1,), (1, one.full_outputs), ((0.0, 1.0),)) for one in groups.layers}
    table = LatencyTable(groups.model, groups.input_shape, groups.digest, "torch", "by hand", 1, layers)
    return Budget(latency=latency, multiple=1, table=table)


def measuring(monkeypatch: pytest.MonkeyPatch, floor: float, power: float = 1.0) -> list[float]:
    """Real time has a part that no pruning saves, and another shape; returns what will have been measured."""
    seen: list[float] = []

    def ratio(small, full, shape):
        share = small[3].out_channels / full[3].out_channels
        seen.append(floor + (1 - floor) * share**power)
        return LatencyRatio(seen[-1], seen[-1] - 0.01, seen[-1] + 0.01)

    monkeypatch.setattr(_measured_budgets, "measured_latency_ratio", ratio)
    return seen


@pytest.mark.parametrize(("floor", "power"), [(0.0, 1.0), (0.4, 1.0), (0.4, 0.4), (0.1, 3.0)])
def test_the_plan_is_corrected_until_the_measured_time_holds(selection, monkeypatch, floor, power) -> None:
    seen = measuring(monkeypatch, floor, power)
    asked = budget(selection, 0.7)
    found = corrected(selection, asked, FILES)
    measured = seen[-1]
    assert 0.5 < measured <= 0.7
    assert len(seen) <= 1 + _measured_budgets.ATTEMPTS
    pruned = selection.submodel(found)
    assert predicted_latency_ratio(selection.base.groups, asked.table, pruned.plan.counts()) <= found.latency


def test_what_no_cutting_reaches_is_refused_with_what_was_measured(selection, monkeypatch) -> None:
    seen = measuring(monkeypatch, 0.6)
    with pytest.raises(PlanError, match=r"budget is 0.5, the smallest network \(.*% of the MACs\) was measured at 0.6"):
        corrected(selection, budget(selection, 0.5), FILES)
    assert len(seen) == 1


def test_cutting_stops_where_it_hardly_saves_time(selection, monkeypatch) -> None:
    def ratio(small, full, shape):
        return LatencyRatio(*[0.66 if small[3].out_channels == 1 else 0.7] * 3)

    monkeypatch.setattr(_measured_budgets, "measured_latency_ratio", ratio)
    with pytest.raises(PlanError, match=r"measured are 0\.700 with .* and 0\.660 with .*: more cutting hardly helps"):
        corrected(selection, budget(selection, 0.68), FILES)


def test_just_above_the_floor_a_budget_that_keeps_far_more_is_named(selection, monkeypatch) -> None:
    """Two of twelve channels take 0.667 of the time, three 0.7 with more than twice the MACs."""
    seen = measuring(monkeypatch, 0.6)
    named = r"measured are 0\.700 with 10\.8% of the MACs and 0\.667 with 4\.7%: .* raise the budget to 0\.73"
    with pytest.raises(PlanError, match=named):
        corrected(selection, budget(selection, 0.68), FILES)
    planned = selection.submodel(corrected(selection, budget(selection, 0.73), FILES))
    assert planned.macs_ratio > 0.05
    assert min(seen[-2:]) > 0.667


def test_a_miss_is_one_beyond_the_spread() -> None:
    require_latency(LatencyRatio(0.52, 0.49, 0.6), 0.5)
    require_latency(LatencyRatio(0.9, 0.9, 0.9), None)
    with pytest.raises(PlanError, match=r"latency budget is 0.5, measured are 0.550 \(0.510 to 0.600\)"):
        require_latency(LatencyRatio(0.55, 0.51, 0.6), 0.5)
