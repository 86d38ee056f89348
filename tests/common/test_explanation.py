"""Explanations of a plan: by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedcaptor.common.explanation import explain
from fedcaptor.common.planner import Budget, allocate
from tests.common.small_groups import even_curves, small_groups

GROUPS = small_groups()
CURVES = even_curves(GROUPS, a=1.0, b=0.4)
TWO = np.array([0, 2])


def test_why_says_what_the_next_block_would_lose_and_save() -> None:
    chosen = allocate(GROUPS, CURVES, TWO, Budget(parameters=0.8, multiple=2))
    a, b = explain(GROUPS, CURVES, chosen, 2)
    assert (a["kept"], b["kept"]) == (4, 6)
    assert a["share_of_macs"] == pytest.approx(576 / 1776)
    assert b["share_of_macs"] == pytest.approx(1152 / 1776)
    assert b["share_of_parameters"] == pytest.approx(288 / 375)
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
