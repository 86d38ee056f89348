"""Rounds over months: what a phone's ledger charges in any 90 days, whom a round has, and what one start of it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedcaptor.client.ledger import Ledger
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, PostponedError
from fedcaptor.server.budget import SumBudget, steps, steps_of
from fedcaptor.server.flow import Flow
from fedcaptor.server.masked import Lost
from fedcaptor.server.period import DAY_SECONDS, Charge, counted, day_of, fits_from
from fedcaptor.server.record import RunRecord
from fedcaptor.server.start import open_run, run_digest
from fedcaptor.simulations.local_grid import VirtualClock
from fedcaptor.simulations.runner import build_world
from tests.server.test_budget import GROUPS
from tests.server.test_flow import BASE, NODES, Courier, Grid, phases

START = 1_800_000_000.0
OPEN_ENDED = [
    "run.rounds=0",
    "privacy.rounds_per_period=3",
    "privacy.min_cohort=20",
    "scores.enabled=false",
    "clusters.k=2",
]


class Months:
    """One run that is started again and again, by a clock that tells days."""

    def __init__(self, state: Path, *settings: str) -> None:
        self.state, self.nodes = state, list(NODES)
        self.config = load_config(None, [*OPEN_ENDED, *settings])
        self.budget = SumBudget(self.config, GROUPS, len(NODES))
        self.clock = VirtualClock()
        self.at(0)
        self.ledger = Ledger(
            state / "phone.db",
            durable=False,
            clock=self.clock.time,
            delta=self.config.privacy.delta,
            budget_epsilon=self.config.privacy.epsilon,
            dishonest=self.config.privacy.noiseless,
        )

    def at(self, day: float) -> None:
        self.clock.now = START + day * DAY_SECONDS

    @contextmanager
    def open(self, courier: Any, wait: bool = False) -> Iterator[Flow]:
        grid: Any = Grid(self.nodes)
        reference: Any = None
        with open_run(
            self.config,
            BASE,
            reference,
            grid,
            digest=run_digest(self.config, BASE, "months"),
            state=f"sqlite:///{self.state / 'state.db'}",
            pictures=self.state,
            courier=courier,
            budget=self.budget,
            phases=phases([]),
            clock=self.clock.time,
            wait_for_nodes=grid.get_node_ids if wait else None,
        ) as flow:
            yield flow

    def start(self, rounds: int = 1, courier: Any = None, wait: bool = False) -> RunRecord:
        with self.open(courier or Courier(ledger=self.ledger), wait) as flow:
            return flow.run(rounds)


@pytest.fixture
def months(tmp_path: Path) -> Iterator[Months]:
    found = Months(tmp_path)
    with found.ledger:
        yield found


@pytest.mark.slow
def test_epsilon_of_a_year_is_the_most_that_a_ledger_had_in_any_90_days(months: Months) -> None:
    """The ledger declines what its budget does not allow: it never has to."""
    most, found = 0.0, None
    for number, day in enumerate([0, 20, 50, 95, 115, 150, 240, 241, 242, 330, 364], 1):
        months.at(day)
        found = months.start()
        most = max(most, months.ledger.spent())
        assert len(found.rounds) == number
        assert found.epsilon == pytest.approx(most)
    assert 7.5 < most <= 8
    assert not found.over
    assert len(months.ledger.entries()) == len(found.sums) == 4 + 10 * 2
    assert found.epsilon < found.epsilon_server  # type: ignore[operator]


@pytest.mark.slow
def test_a_round_beyond_the_budget_asks_nobody_and_names_the_day_from_which_it_fits(months: Months) -> None:
    for day in (0, 10, 20):
        months.at(day)
        months.start()
    months.at(30)
    courier = Courier(ledger=months.ledger)
    with pytest.raises(
        PostponedError, match=rf"round 4 would exceed epsilon 8 .* from {day_of(START + 90 * 86400)} on"
    ):
        months.start(courier=courier)
    assert courier.asked == []
    months.at(89.9)
    with pytest.raises(PostponedError, match="round 4 would exceed"):
        months.start()
    months.at(90)
    assert len(months.start().rounds) == 4


@pytest.mark.slow
def test_a_lost_sum_without_a_reserve_waits_until_phones_may_answer_again(months: Months) -> None:
    months.start(2)
    with pytest.raises(Lost):
        months.start(courier=Courier("outcome-0", 1, ledger=months.ledger))
    months.at(1)
    courier = Courier(ledger=months.ledger)
    with pytest.raises(PostponedError, match="round 3 would exceed"):
        months.start(courier=courier)
    assert courier.asked == []
    months.at(90)
    assert len(months.start().rounds) == 3


@pytest.mark.slow
def test_a_reserve_is_renewed_with_the_period(tmp_path: Path) -> None:
    months = Months(tmp_path, "privacy.reserve=1")
    with months.ledger:
        for day in (0, 100, 200):
            months.at(day)
            found = months.start(courier=Courier("usage-1", 1, ledger=months.ledger))
        assert len(months.ledger.entries()) == len(found.sums) + 3
    assert found.lost == {("usage-1", "late"): 3}
    assert found.epsilon <= 8  # type: ignore[operator]


@pytest.mark.slow
def test_a_start_runs_so_many_further_rounds_and_a_stopped_one_is_among_them(months: Months) -> None:
    courier = Courier(ledger=months.ledger)
    assert [done.round for done in months.start(2, courier).rounds] == [1, 2]
    assert [round for round, *_ in courier.asked] == [1, 1, 1, 1, 2, 2]
    months.at(100)
    with pytest.raises(Lost):
        months.start(courier=Courier("outcome-0", 1, "early"))
    again = Courier(ledger=months.ledger)
    assert [done.round for done in months.start(1, again).rounds] == [1, 2, 3]
    assert [name for _, name, _ in again.asked] == ["3-outcome-0"]


@pytest.mark.slow
def test_a_run_with_a_last_round_is_over_after_it(tmp_path: Path) -> None:
    months = Months(tmp_path, "run.rounds=2")
    with months.ledger:
        assert [months.start().over, months.start().over, months.start(0).over] == [False, True, True]


@pytest.mark.parametrize("phones", [48, 59, 75, 400])
def test_rounds_of_other_phones_charge_each_no_more(phones: int) -> None:
    config = load_config(None, [*OPEN_ENDED, "scores.enabled=true"])
    first = SumBudget(config, GROUPS, 60)
    later = first.for_phones(phones)
    for step in steps(config):
        planned, found = first.spec(step, None), later.spec(step, None)
        assert found.cohort == phones
        assert 0.98 * first.charge(planned) < later.charge(found) <= first.charge(planned)  # type: ignore[operator]
    mixed = [first.spec(step, None) for step in steps_of(config, 1)]
    mixed += [later.spec(step, None) for round in (2, 3) for step in steps_of(config, round)]
    assert 7.9 < first.epsilon(mixed) <= 8  # type: ignore[operator]
    assert first.for_phones(60) is first


@pytest.mark.slow
def test_phones_that_come_later_take_part_from_the_next_round_and_those_that_left_do_not(months: Months) -> None:
    months.start(wait=True)
    months.at(30)
    months.nodes = list(range(20, 200))
    courier = Courier(ledger=months.ledger)
    with pytest.raises(Lost):
        months.start(courier=Courier("usage-1", 1, "early"), wait=True)
    months.nodes += [500]  # it came while the round was stopped: the round keeps its phones
    found = months.start(courier=courier, wait=True)
    assert found.phones == 180
    assert [nodes for *_, nodes in courier.asked] == 2 * [list(range(20, 200))]
    months.at(60)
    found = months.start(wait=True)
    assert (found.phones, len(found.rounds)) == (181, 3)
    assert found.epsilon == pytest.approx(months.ledger.spent())
    assert found.epsilon <= 8  # type: ignore[operator]


@pytest.mark.slow
def test_a_round_with_too_few_phones_begins_when_they_are_back(months: Months) -> None:
    months.start(wait=True)
    months.nodes, courier = NODES[:19], Courier(ledger=months.ledger)
    with pytest.raises(PostponedError, match=r"round 2 cannot begin: 19 phones .*\.min_cohort is 20: take more"):
        months.start(courier=courier, wait=True)
    assert courier.asked == []
    months.nodes = NODES[:40]
    assert [done.round for done in months.start(wait=True).rounds] == [1, 2]


def test_an_open_end_needs_a_budget_that_is_renewed() -> None:
    with pytest.raises(ConfigError, match=r"run\.rounds is 0, .* set privacy\.rounds_per_period above 0"):
        load_config(None, ["run.rounds=0"])
    assert load_config(None, ["run.rounds=9", "privacy.rounds_per_period=4"]).planned_rounds == 4
    assert load_config(None, ["run.rounds=2", "privacy.rounds_per_period=4"]).planned_rounds == 2
    assert load_config(None, ["privacy.rounds_per_period=0"]).digest == load_config().digest
    with pytest.raises(ConfigError, match=r"delivery\.fetches is 2, below the 3 rounds"):
        load_config(None, [*OPEN_ENDED, "delivery.mode=submodel", "delivery.fetches=2"])


@pytest.mark.parametrize("settings", [["run.rounds=0"], ["run.rounds=4"]])
def test_a_simulation_is_over_within_one_period(settings: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.rounds_per_period 3: the rounds of a simulation follow at once"):
        build_world(load_config(None, [*OPEN_ENDED, *settings]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_charges_count_until_a_period_after_they_were_over() -> None:
    charges = [Charge("a", 10.0), Charge("b", 20.0), Charge("unknown", math.inf)]
    assert [charge.spec for charge in counted(charges, 109, 100)] == ["a", "b", "unknown"]
    assert [charge.spec for charge in counted(charges, 110, 100)] == ["b", "unknown"]

    def at_most(number: int) -> Any:
        def fits(answered: Sequence[Charge]) -> bool:
            return len(answered) <= number

        return fits

    assert [fits_from(charges, 50, 100, at_most(number)) for number in (3, 2, 1, 0)] == [50, 110, 120, None]
