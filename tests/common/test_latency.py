"""Latency tables by hand, what a planner makes of them, and one real measurement."""

from __future__ import annotations

import dataclasses
import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from fedcaptor.common.costs import Costs, predicted_latency_ratio
from fedcaptor.common.errors import ModelError, PlanError
from fedcaptor.common.latency import LatencyTable, LayerTimes, monotone
from fedcaptor.common.planner import Budget, allocate
from fedcaptor.common.timing import PAIRED, LatencyRatio
from fedcaptor.common.torch_engine import latency
from fedcaptor.common.torch_engine.registry import build
from fedcaptor.common.torch_engine.trace import trace
from tests import tiny
from tests.common import own_networks
from tests.common.small_groups import even_curves, lost, small_groups

GROUPS = small_groups()
CURVES = even_curves(GROUPS, a=1.0, b=0.4)
TWO = np.array([0, 2])

# Layer a takes nearly all of the time and b hardly any, against their MACs.
TABLE = LatencyTable(
    GROUPS.model,
    GROUPS.input_shape,
    GROUPS.digest,
    "torch",
    "by hand",
    1,
    {
        "a": LayerTimes((1,), (2, 4), ((3.0, 7.0),)),
        "b": LayerTimes((2, 4), (2, 8), ((0.5, 1.0), (1.0, 2.0))),
        "c": LayerTimes((16,), (3,), ((0.5,),)),
    },
    0.5,
)


def counts(latency: float | None, table: LatencyTable | None = TABLE, **more: float) -> tuple[int, int]:
    kept = allocate(GROUPS, CURVES, TWO, Budget(multiple=2, latency=latency, table=table, **more)).counts()
    return kept["a"], kept["b"]


def test_interpolation_is_exact_on_the_grid_bilinear_inside_and_flat_beyond() -> None:
    times = LayerTimes((8, 16, 32), (8, 24), ((1.0, 2.0), (1.5, 4.0), (1.5, 6.0)))
    on_grid = [[times.at(i, j) for j in times.outputs] for i in times.inputs]
    assert on_grid == [list(row) for row in times.seconds]
    assert times.at(12, 16) == (1.0 + 2.0 + 1.5 + 4.0) / 4
    assert times.at(20, 24) == 4.5
    assert times.at(1, 2) == 1.0
    assert times.at(99, 99) == 6.0


grids = arrays(np.float64, (4, 3), elements=st.floats(0, 100))


@given(grids)
def test_noise_is_smoothed_into_times_that_never_fall(seconds: np.ndarray) -> None:
    times = monotone(seconds)
    assert (np.diff(times, axis=0) >= 0).all()
    assert (np.diff(times, axis=1) >= 0).all()
    assert np.array_equal(monotone(times), times)
    assert times.min() >= seconds.min()
    assert times.max() <= seconds.max()


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (((2.0, 1.0),), "never fall"),
        (((-1.0, 1.0),), "at least 0"),
        (((1.0, float("nan")),), "at least 0"),
        (((1.0,),), r"grid is \(1, 1\) for 1 × 2"),
    ],
)
def test_senseless_times_are_refused(seconds: tuple[tuple[float, ...], ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        LayerTimes((4,), (2, 8), seconds)
    with pytest.raises(ModelError, match="must grow"):
        LayerTimes((4,), (8, 8), ((1.0, 1.0),))


def test_what_saves_time_goes_first() -> None:
    # The full model takes 10. Cutting a to 2 loses 2 and saves 4 + 1; b to 6 loses 0.8 and saves a third.
    assert counts(0.9) == (2, 8)
    assert counts(None, parameters=0.8) == (4, 6)
    assert predicted_latency_ratio(GROUPS, TABLE, {"a": 2}) == pytest.approx(0.5)


def test_latency_holds_together_with_the_other_budgets() -> None:
    assert counts(0.9, parameters=0.55) == (2, 8)
    a, b = counts(0.9, parameters=0.3)
    assert GROUPS.parameters_ratio({"a": a, "b": b, "c": 2}) <= 0.3
    assert predicted_latency_ratio(GROUPS, TABLE, {"a": a, "b": b, "c": 2}) <= 0.9
    assert b < 8


def test_an_impossible_latency_names_one_that_works() -> None:
    with pytest.raises(PlanError, match=r"latency budget is 0.1 of the full model, 0.45 is the nearest possible"):
        counts(0.1)
    assert counts(0.45) == (2, 2)


def test_a_latency_needs_a_table_of_this_network() -> None:
    with pytest.raises(PlanError, match=r"latency budget is 0.5 without a latency table"):
        counts(0.5, None)
    with pytest.raises(PlanError, match=r"latency budget is 1.5"):
        counts(1.5)
    with pytest.raises(ModelError, match=r"latency table is of small .* remove the table"):
        allocate(small_groups(6), even_curves(small_groups(6), a=1.0, b=1.0), TWO, Budget(latency=0.5, table=TABLE))


def test_a_step_that_saves_no_time_does_not_stop_the_path() -> None:
    flat = {
        "a": LayerTimes((1,), (2, 4), ((1.0, 1.0),)),
        "b": LayerTimes((1,), (2, 4, 8), ((1.0, 4.0, 4.0),)),
    }
    assert counts(0.6, dataclasses.replace(TABLE, layers={**TABLE.layers, **flat}))[1] == 2


def test_steps_that_save_next_to_no_time_end_too() -> None:
    flat = {"a": LayerTimes((1,), (2, 4), ((1.0, 1.0),)), "b": LayerTimes((1,), (2, 8), ((0.0, 1e-310),))}
    table = dataclasses.replace(TABLE, layers={**TABLE.layers, **flat})  # loss per unit is beyond the largest float
    with pytest.raises(PlanError, match=r"latency budget is 0.1 of the full model, 1 is the nearest possible"):
        counts(0.1, table)


@pytest.mark.slow
@given(grids, st.floats(0.1, 1.0), st.floats(0.1, 1.0))
@example(np.array([[0.0, 0, 2], [2, 25, 2], [2, 2, 2], [2, 2, 2]]), 0.5, 0.375)  # what is left goes to another layer
def test_a_larger_latency_loses_no_more_than_a_smaller_one(seconds: np.ndarray, one: float, two: float) -> None:
    groups = small_groups(24, 40)
    times = LayerTimes((4, 8, 16, 24), (8, 16, 40), tuple(map(tuple, monotone(seconds).tolist())))
    table = dataclasses.replace(TABLE, digest=groups.digest, layers={**TABLE.layers, "b": times})
    curves, plans = even_curves(groups, a=1.0, b=0.4), []
    for ratio in sorted([one, two]):
        try:
            plans.append(allocate(groups, curves, TWO, Budget(latency=ratio, table=table, multiple=4)))
        except PlanError:
            smallest = {"a": 4, "b": 4, "c": 2}
            assert predicted_latency_ratio(groups, table, smallest) > ratio
            continue
        assert predicted_latency_ratio(groups, table, plans[-1].counts()) <= ratio * (1 + 1e-12)
    if len(plans) == 2:
        assert lost(curves, plans[1]) <= lost(curves, plans[0]) + 1e-9


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "small.latency.json"
    TABLE.write(file)
    assert LatencyTable.read(file, GROUPS) == TABLE
    assert list(tmp_path.iterdir()) == [file]


def test_another_networks_table_and_a_damaged_one_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "small.latency.json"
    TABLE.write(file)
    with pytest.raises(ModelError, match=r"small.latency.json: latency table is of small on images \(1, 4, 4\)"):
        LatencyTable.read(file, small_groups(6))
    for text in ("{", "[]", json.dumps({**json.loads(TABLE.to_json()), "more": 1})):
        file.write_text(text)
        with pytest.raises(ModelError, match=r"small.latency.json: latency table is not readable"):
            LatencyTable.read(file, GROUPS)


@pytest.mark.parametrize("factory", ["plain", "concatenating", "dense", "depthwise_with_bias"])
@pytest.mark.usefixtures("one_thread")
def test_time_in_proportion_to_weights_is_priced_as_the_recount(factory: str) -> None:
    """Each layer takes inputs × outputs seconds, bilinear: interpolation is exact, behind concatenations too."""
    name = f"{own_networks.__name__}:{factory}"
    groups = trace(build(name, 10, (3, 16, 12)), name, (3, 16, 12))
    full = {layer.name: groups.tensors[f"{layer.name}.weight"][:2] for layer in groups.layers}
    layers = {key: _product(inputs, outputs) for key, (outputs, inputs) in full.items()}
    table = LatencyTable(name, groups.input_shape, groups.digest, "torch", "by hand", 1, layers)
    costs, rng = Costs.of(groups, table), np.random.default_rng(5)
    for _ in range(10):
        kept = {g.name: int(rng.integers(1, g.channels + 1)) for g in groups.groups}
        now, shapes = costs.total(kept)[2], groups.shapes(kept)
        assert now == pytest.approx(sum(np.prod(shapes[f"{key}.weight"][:2]) for key in layers))
        for group in groups.groups:
            after = kept | {group.name: int(rng.integers(1, kept[group.name] + 1))}
            saved = costs.saved(kept, group.name, after[group.name])[2]
            assert saved == pytest.approx(now - costs.total(after)[2])


def _product(inputs: int, outputs: int) -> LayerTimes:
    rows, columns = ((1, n) if n > 1 else (1,) for n in (inputs, outputs))
    return LayerTimes(rows, columns, tuple(tuple(float(i * j) for j in columns) for i in rows))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_measured_table_covers_the_network(tmp_path: Path) -> None:
    base = tiny.base_model(tiny.write(tmp_path, 100, 1)[1])
    before = {key: array.copy() for key, array in base.state.items()}
    done: list[tuple[int, int]] = []
    table = latency.measure_table(base, 2, lambda *step: done.append(step))
    assert done == [(1, 3), (2, 3), (3, 3)]
    table.check(base.groups)
    first, second, last = table.layers.values()
    assert (first.inputs, first.outputs) == ((1,), (2, 4, 6, 8))
    assert (second.inputs, second.outputs) == ((2, 4, 6, 8), (2, 4, 6, 8, 12))
    assert (last.inputs, last.outputs) == ((18, 36, 54, 72, 108), (1, 2, 3, 4, 6))
    assert all(min(map(min, layer.seconds)) > 0 for layer in table.layers.values())
    assert LatencyTable.from_json(table.to_json()) == table
    assert all(np.array_equal(base.state[key], array) for key, array in before.items())
    assert latency.measure(base.module, base.groups.input_shape) > 0


@pytest.mark.usefixtures("one_thread")
def test_with_a_clock_that_ticks_evenly_all_calls_take_one_tick(tmp_path: Path) -> None:
    base = tiny.base_model(tiny.write(tmp_path, 100, 1)[1])
    ticks = count()
    clock = lambda: float(next(ticks))  # noqa: E731  a clock is one call
    shape = base.groups.input_shape
    assert latency.measure(base.module, shape, clock) == 1
    assert latency.measured_latency_ratio(base.module, base.module, shape, clock) == LatencyRatio(1, 1, 1)
    table = latency.measure_table(base, 2, clock=clock)
    # a tick in the layer and one behind it, whose share grows with the outputs
    assert table.rest == 1
    assert [layer.seconds[-1][-1] for layer in table.layers.values()] == [2, 2, 2]
    assert table.layers["3"].seconds[0] == (1 + 2 / 12, 1 + 4 / 12, 1.5, 1 + 8 / 12, 2)


class _Worker(nn.Module):
    """A network that takes `seconds` of a clock, and as much again for the first image after another network."""

    def __init__(self, clock: list[float], seconds: float, last: list[object]) -> None:
        super().__init__()
        self.clock, self.seconds, self.last = clock, seconds, last
        self.jitter: np.random.Generator | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cold = self.last[0] is not self
        self.last[0] = self
        self.clock[0] += self.seconds * (2 if cold else 1) * (self.jitter.uniform(0.8, 1.2) if self.jitter else 1)
        return x


def test_a_ratio_is_of_networks_that_run_for_a_while_and_states_its_spread() -> None:
    now, last = [0.0], [object()]
    small, full = _Worker(now, 0.0003, last), _Worker(now, 0.001, last)
    clock = lambda: now[0]  # noqa: E731  a clock is one call
    found = latency.measured_latency_ratio(small, full, (1, 2, 2), clock)
    assert found.median == pytest.approx(0.3)
    assert found.low == pytest.approx(0.3)
    assert now[0] > PAIRED
    full.jitter = small.jitter = np.random.default_rng(0)
    found = latency.measured_latency_ratio(small, full, (1, 2, 2), clock)
    assert found.low < found.median < found.high
    assert found.median == pytest.approx(0.3, rel=0.05)
