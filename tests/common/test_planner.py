"""Plans by hand, and what holds for every budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedcaptor.common.costs import Costs
from fedcaptor.common.errors import PlanError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.planner import Budget, allocate, ladder, require_possible
from fedcaptor.common.selection import PruningCurve
from fedcaptor.common.slicer import slice_state
from fedcaptor.common.torch_engine.registry import build
from fedcaptor.common.torch_engine.trace import trace
from fedcaptor.common.weights_file import save_state
from tests.common import own_networks
from tests.common.small_groups import even_curves, lost, small_groups
from tests.common.test_slicing import random_plan, random_state

GROUPS = small_groups()
CURVES = even_curves(GROUPS, a=1.0, b=0.4)
TWO = np.array([0, 2])


def counts(budget: Budget) -> tuple[int, int]:
    kept = allocate(GROUPS, CURVES, TWO, budget).counts()
    return kept["a"], kept["b"]


def test_costs_of_the_small_network() -> None:
    assert GROUPS.macs() == 576 + 1152 + 48
    assert GROUPS.parameters() == 36 + 288 + 48 + 3


def test_each_kind_of_budget_cuts_what_is_cheapest_in_its_unit() -> None:
    # Cutting a to 2 loses 2 and saves 864 MACs, 162 values; cutting b to 6 loses 0.8 and saves 296 MACs, 80 values.
    assert counts(Budget(macs=0.9, multiple=2)) == (2, 8)
    assert counts(Budget(parameters=0.8, multiple=2)) == (4, 6)
    assert counts(Budget(bytes=GROUPS.file_overhead + 2 * 300, multiple=2)) == (4, 6)


def test_what_a_large_last_block_leaves_goes_back_to_others() -> None:
    # b is cheaper until it is down to 2, at 872 of 1776 MACs; then half of a goes, down to 440. Two of b cost 152.
    curves = even_curves(GROUPS, a=3.25, b=1.0)
    for macs, kept in ((0.5, (4, 2)), (0.45, (2, 6)), (0.4, (2, 4)), (0.3, (2, 2))):
        found = allocate(GROUPS, curves, TWO, Budget(macs=macs, multiple=2)).counts()
        assert (found["a"], found["b"]) == kept


def test_the_unit_of_two_broken_budgets_is_their_sum() -> None:
    # a: 2 / (864/1776 + 162/375) = 2.18; b: 0.8 / (296/1776 + 80/375) = 2.11, and both budgets hold after it.
    assert counts(Budget(macs=0.9, parameters=0.8, multiple=2)) == (4, 6)


def test_only_what_is_still_over_counts() -> None:
    # One cut of b satisfies the MACs (1464 of 1510); 278 values are still too many, so b goes on for the values.
    assert counts(Budget(macs=0.85, parameters=0.6, multiple=2)) == (4, 4)


def test_channels_that_cost_least_go_first_and_classes_stay() -> None:
    chosen = allocate(GROUPS, CURVES, TWO, Budget(macs=0.4, multiple=2))
    assert chosen.kept["a"].tolist() == [2, 3]
    assert chosen.kept["b"].tolist() == [4, 5, 6, 7]
    assert chosen.kept["c"].tolist() == [0, 2]


def test_a_whole_budget_removes_nothing_but_classes() -> None:
    assert counts(Budget(macs=1.0, parameters=1.0, multiple=3)) == (4, 8)


def test_an_impossible_budget_names_what_is_broken_and_a_value_that_works() -> None:
    with pytest.raises(PlanError) as caught:
        counts(Budget(macs=0.1, parameters=0.9, multiple=2))
    assert "MACs budget is 0.1 of the full model, 0.2478 is the nearest possible" in str(caught.value)
    assert "parameters" not in str(caught.value)
    assert counts(Budget(macs=0.2478, multiple=2)) == (2, 2)
    with pytest.raises(PlanError) as caught:
        counts(Budget(macs=0.1, parameters=0.1, bytes=10, multiple=2))
    nearest = GROUPS.file_bytes({"a": 2, "b": 2, "c": 2})
    assert "parameters budget is 0.1 of the full model, 0.1707 is the nearest" in str(caught.value)
    assert f"bytes budget is 10, {nearest} is the nearest possible with multiples of 2" in str(caught.value)
    assert counts(Budget(bytes=nearest, parameters=0.1707, multiple=2)) == (2, 2)


@pytest.mark.parametrize(
    "budget", [Budget(macs=0.1, parameters=0.1, bytes=10, multiple=2), Budget(macs=0.2477, multiple=2)]
)
def test_an_impossible_budget_is_refused_alike_without_curves(budget: Budget) -> None:
    with pytest.raises(PlanError) as late:
        counts(budget)
    with pytest.raises(PlanError) as early:
        require_possible(GROUPS, len(TWO), budget)
    assert str(early.value) == str(late.value)
    require_possible(GROUPS, len(TWO), Budget(macs=0.2478, multiple=2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "at least one of macs, parameters, bytes and latency"),
        ({"macs": 0.0}, r"MACs budget is 0.0, must lie in \(0, 1\]"),
        ({"parameters": 1.2}, "parameters budget is 1.2"),
        ({"bytes": 0}, "bytes budget is 0, must be at least 1"),
        ({"macs": 0.5, "multiple": 0}, "multiple is 0"),
    ],
)
def test_senseless_budgets_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Budget(**values)


@st.composite
def problems(draw: st.DrawFn) -> tuple[ChannelGroups, dict[str, PruningCurve], int]:
    """A network, losses that grow or do not, and a multiple."""
    groups = small_groups(draw(st.integers(1, 24)), draw(st.integers(1, 40)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    curves = {}
    for group in groups.prunable:
        cost = rng.exponential(size=group.channels) * (rng.random(group.channels) < 0.8)
        curves[group.name] = PruningCurve(
            rng.permutation(group.channels), np.sort(cost) if draw(st.booleans()) else cost
        )
    return groups, curves, draw(st.sampled_from([1, 2, 8]))


def of_kind(kind: str, groups: ChannelGroups, ratio: float, multiple: int) -> Budget:
    if kind == "bytes":
        return Budget(bytes=groups.file_overhead + round(2 * ratio * groups.parameters()), multiple=multiple)
    return Budget(**{kind: ratio}, multiple=multiple)


ratios = st.floats(0.02, 1.0)


@given(problems(), st.sampled_from(["macs", "parameters", "bytes"]), ratios, ratios)
def test_a_larger_budget_loses_no_more_than_a_smaller_one(problem, kind: str, one: float, two: float) -> None:
    groups, curves, multiple = problem
    try:
        small, large = (
            allocate(groups, curves, TWO, of_kind(kind, groups, ratio, multiple))
            for ratio in (min(one, two), max(one, two))
        )
    except PlanError:
        assume(False)

    assert lost(curves, large) <= lost(curves, small) + 1e-9


@given(problems(), st.none() | ratios, st.none() | ratios, st.none() | st.integers(500, 4000))
def test_every_budget_holds_or_the_smallest_network_breaks_it(problem, macs, parameters, size) -> None:
    groups, curves, multiple = problem
    assume(any(limit is not None for limit in (macs, parameters, size)))
    budget = Budget(macs, multiple, parameters, size)
    smallest = {g.name: g.channels if g.channels < multiple else multiple for g in groups.prunable} | {"c": 2}
    try:
        kept = allocate(groups, curves, TWO, budget).counts()
    except PlanError:
        assert budget.broken(groups, smallest)
        return
    assert not budget.broken(groups, kept)
    assert macs is None or groups.macs_ratio(kept) <= macs + 1e-12
    assert parameters is None or groups.parameters_ratio(kept) <= parameters + 1e-12
    assert size is None or groups.file_bytes(kept) <= size
    for group in groups.prunable:
        assert kept[group.name] == group.channels or (kept[group.name] % multiple == 0 and kept[group.name] > 0)


@given(problems(), st.lists(ratios, min_size=1, max_size=6))
def test_a_ladder_is_the_plans_of_its_rungs(problem, rungs: list[float]) -> None:
    groups, curves, multiple = problem

    def alone(ratio: float) -> str | None:
        try:
            return allocate(groups, curves, TWO, Budget(ratio, multiple)).digest
        except PlanError:
            return None

    expected = {ratio: digest for ratio in sorted(set(rungs)) if (digest := alone(ratio)) is not None}
    if not expected:
        with pytest.raises(PlanError):
            ladder(groups, curves, TWO, Budget(1.0, multiple), rungs)
        return
    found = ladder(groups, curves, TWO, Budget(1.0, multiple), rungs)
    assert list(found) == list(expected)
    assert {ratio: chosen.digest for ratio, chosen in found.items()} == expected


def test_a_ladder_holds_the_other_budgets_too() -> None:
    found = ladder(GROUPS, CURVES, TWO, Budget(macs=0.6, parameters=0.8, multiple=2), [0.3, 1.0])
    assert found[1.0].counts() == allocate(GROUPS, CURVES, TWO, Budget(macs=0.6, parameters=0.8, multiple=2)).counts()
    assert found[0.3].counts() == {"a": 2, "b": 2, "c": 2}
    with pytest.raises(PlanError, match="0 MACs ratios"):
        ladder(GROUPS, CURVES, TWO, Budget(1.0), [])


@pytest.mark.parametrize("factory", ["plain", "concatenating", "dense", "depthwise_with_bias", "gated", "flat_norm"])
@pytest.mark.usefixtures("one_thread")
def test_prices_are_those_of_the_recounted_network(factory: str) -> None:
    name = f"{own_networks.__name__}:{factory}"
    groups = trace(build(name, 10, (3, 16, 12)), name, (3, 16, 12))
    costs, rng = Costs.of(groups), np.random.default_rng(3)
    for _ in range(20):
        kept = {g.name: int(rng.integers(1, g.channels + 1)) for g in groups.groups}
        now = (groups.macs(kept), groups.parameters(kept))
        assert costs.total(kept) == now
        for group in groups.groups:
            after = kept | {group.name: int(rng.integers(1, kept[group.name] + 1))}
            saved = costs.saved(kept, group.name, after[group.name])
            assert saved == (now[0] - groups.macs(after), now[1] - groups.parameters(after))


@pytest.mark.usefixtures("one_thread")
def test_saving_depends_on_neighbours_alone() -> None:
    groups = trace(build("resnet20", 10, (3, 16, 16)), "resnet20", (3, 16, 16))
    costs, full = Costs.of(groups), {g.name: g.channels for g in groups.groups}
    for changed in groups.groups:
        after = full | {changed.name: 1}
        for other in groups.groups:
            if other.name not in costs.neighbours(changed.name):
                assert costs.saved(full, other.name, 1) == costs.saved(after, other.name, 1)


@pytest.mark.usefixtures("one_thread")
def test_a_file_is_never_larger_than_promised(tmp_path) -> None:
    module = build("small-cnn", 10, (1, 28, 28))
    groups, file = trace(module, "small-cnn", (1, 28, 28)), tmp_path / "submodel.safetensors"
    for seed in range(8):
        rng = np.random.default_rng(seed)
        chosen = random_plan(groups, rng)
        tensors = slice_state(random_state(module, rng), groups, chosen)
        statistics = {"mean": str((rng.random(),)), "std": str((rng.random(),))}
        save_state(file, tensors, {"model": "small-cnn", "plan": chosen.to_json(), **statistics})
        promised = groups.file_bytes(chosen.counts())
        assert promised - groups.file_overhead < file.stat().st_size <= promised
