"""Explanations of a plan: by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedcaptor.common.explanation import explain
from fedcaptor.common.plan import Plan
from fedcaptor.common.planner import Budget, allocate
from fedcaptor.common.torch_engine.registry import build
from fedcaptor.common.torch_engine.trace import trace
from tests.common import own_networks
from tests.common.small_groups import even_curves, small_groups

GROUPS = small_groups()
CURVES = even_curves(GROUPS, a=1.0, b=0.4)
TWO = np.array([0, 2])


def test_why_says_what_the_next_block_would_lose_and_save() -> None:
    chosen = allocate(GROUPS, CURVES, TWO, Budget(parameters=0.8, multiple=2))
    a, b = explain(GROUPS, CURVES, chosen, 2)
    assert (a["kept"], b["kept"]) == (4, 6)
    assert (a["share_of_macs"], b["share_of_macs"]) == pytest.approx((576 / 1776, 1152 / 1776))
    assert (a["share_of_parameters"], b["share_of_parameters"]) == pytest.approx((36 / 375, 288 / 375))
    # On from (4, 6, 2): shrinking a to 2 saves 288 + 432 MACs and 18 + 108 values; b to 4 saves 288 + 8 and 72 + 8.
    assert a["next_loss_per_mac"] == pytest.approx(2 / 720)
    assert a["next_loss_per_parameter"] == pytest.approx(2 / 126)
    assert b["next_loss_per_mac"] == pytest.approx(0.8 / 296)
    assert a["why"] == (
        "kept whole; going on to 2 would add 2 for 40.54% of the MACs and 33.60% of the parameters, dearer than what "
        "other layers gave"
    )
    assert b["why"].startswith("the removed channels cost a loss of 0.8; going on to 4 would add 0.8")
    last = explain(GROUPS, CURVES, allocate(GROUPS, CURVES, TWO, Budget(macs=0.25, multiple=2)), 2)
    assert last[0]["why"] == "at its smallest multiple; the removed channels cost a loss of 2"
    assert json.loads(json.dumps(last)) == last


@pytest.mark.parametrize("name", ["resnet20", f"{own_networks.__name__}:grouped_twice"])
def test_shares_of_all_layers_sum_to_the_whole_model(name: str) -> None:
    """With residual sums, whose layers are of one group, grouped convolutions, and the layer of the classes."""
    groups = trace(build(name, 5, (3, 32, 32)), name, (3, 32, 32))
    curves = even_curves(groups, **{group.name: 1.0 for group in groups.groups})
    whole = Plan.of(groups, {group.name: np.arange(group.channels) for group in groups.groups})
    rows = explain(groups, curves, whole, 8)
    assert sum(row["share_of_macs"] for row in rows) == pytest.approx(1)
    assert sum(row["share_of_parameters"] for row in rows) == pytest.approx(1)
