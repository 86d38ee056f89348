"""The phone's own conversion of zCDP against dp-accounting: every figure equal to the last bit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from dp_accounting import NeighboringRelation, ZCDpEvent, rdp

from fedcaptor.common.assets import asset
from fedcaptor.common.config import load_config
from fedcaptor.common.groups import ChannelGroups, Group
from fedcaptor.common.privacy.zcdp import epsilon, sum_zcdp, to_epsilon
from fedcaptor.server.budget import SumBudget, steps

ORDERS = 1 + np.geomspace(1e-3, 1e6, 2000)
DELTAS = (1e-12, 1e-9, 1e-6, 1e-5, 3.7e-4, 1e-2, 0.3, 0.9)
GROUPS = ChannelGroups(
    "small-cnn",
    (1, 28, 28),
    (Group("a", 32, (), ()), Group("b", 64, (), ()), Group("classes", 10, (), (), output=True)),
    (),
    {},
)
LARGEST = [10.0**exponent for exponent in range(-12, 7)]


def by_library(rhos: Sequence[float], delta: float) -> float:
    accountant = rdp.RdpAccountant(ORDERS, NeighboringRelation.REPLACE_SPECIAL)
    for rho in rhos:
        accountant.compose(ZCDpEvent(rho))
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize("delta", DELTAS)
def test_a_single_charge_is_converted_as_the_library_does(delta: float) -> None:
    rng = np.random.default_rng(3)
    for rho in [*LARGEST, *(10 ** rng.uniform(-8, 3, 12)).tolist(), 5e-324, 1e300]:
        assert to_epsilon([rho], delta) == by_library([rho], delta), rho


@pytest.mark.parametrize("delta", [1e-6, 1e-5, 0.3])
def test_charges_compose_as_in_the_library(delta: float) -> None:
    rng = np.random.default_rng(4)
    for length in (2, 3, 7, 30, 60):
        for spread in (0.1, 4.0):
            rhos = (10 ** rng.uniform(-4 - spread, -4 + spread, length)).tolist()
            assert to_epsilon(rhos, delta) == by_library(rhos, delta)
            assert to_epsilon(rhos[::-1], delta) == by_library(rhos[::-1], delta)


def test_the_demo_s_calibrated_sums_come_to_the_library_s_figure() -> None:
    config = load_config(asset("simulations/scenarios/demo.toml"))
    budget = SumBudget(config, GROUPS, config.population.phones)
    specs = [budget.spec(step, 6) for step in steps(config)]
    privacy = config.privacy
    rhos = [sum_zcdp(spec, privacy.noiseless) for spec in specs]
    found = epsilon(specs, privacy.delta, privacy.noiseless)
    assert found == by_library(rhos, privacy.delta)
    assert found == pytest.approx(privacy.epsilon, rel=0.01)


def test_no_charge_is_nothing_and_an_infinite_one_is_all() -> None:
    assert to_epsilon([], 1e-5) == 0
    assert to_epsilon([0.1, math.inf], 1e-5) == math.inf
