"""The flow of a run with phases and a courier made by hand: what is asked in which round, replayed and recorded."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedcaptor.client.ledger import Ledger
from fedcaptor.common.arrays import Tensors
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, PrivacyError, StateError
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.statistics import COOCCURRENCE, OUTCOME, OUTCOME_FIGURES, USAGE
from fedcaptor.server import phases as ours
from fedcaptor.server.activity import Activity
from fedcaptor.server.cluster_submodels import ClusterSubmodels
from fedcaptor.server.collect import Tally
from fedcaptor.server.flow import Flow, Phases
from fedcaptor.server.masked import Lost
from fedcaptor.server.record import Delivered, RunRecord
from fedcaptor.server.start import open_run, run_digest
from fedcaptor.server.sum_log import SumLog
from tests.server.test_budget import GROUPS

SETTINGS = ["privacy.min_cohort=20", "privacy.noise=false", "scores.enabled=false", "clusters.k=2"]
NODES = list(range(60))
BASE: Any = SimpleNamespace(groups=GROUPS, weights_digest="e" * 64)
NOTHING = ClusterSubmodels((), (), (), ())


class Grid:
    """A grid that only knows its nodes."""

    def __init__(self, nodes: Iterable[int] = NODES) -> None:
        self._nodes = sorted(nodes, reverse=True)

    def get_node_ids(self) -> Iterable[int]:
        return self._nodes


class Courier:
    """Answers as sixty phones would, each half of which meets one class alone; keeps what was asked.

    `lost`: the end of the name of sums that are lost, so many `times`, for a `reason`. `ledger`: of a phone that
    answers each.
    """

    def __init__(self, lost: str = "", times: int = 99, reason: str = "late", ledger: Ledger | None = None) -> None:
        self.asked: list[tuple[int, str, list[int]]] = []
        self.activity = Activity()
        self._lost, self._times, self._reason, self._ledger = lost, times, reason, ledger

    def sum(self, round: int, kind: str, spec: SumSpec, tensors: Tensors, nodes: Iterable[int], log: SumLog) -> Any:
        self.asked.append((round, spec.name, list(nodes)))
        if not log.attempt:
            log.begin(secrets.token_hex(16), log.first, {})
        if self._ledger and self._reason != "early":
            self._ledger.answer(spec, log.attempt, lambda: np.zeros(spec.length, np.uint32))
        if spec.name.endswith(self._lost or "never") and self._times:
            self._times -= 1
            raise Lost(self._reason, "too few phones", NODES[3:5] if self._reason == "unopened" else ())
        total = np.zeros(spec.length)
        if kind == "usage" and "centroids" not in tensors:
            total[[0, -1]] = 30.0  # the diagonal's entries of the first and the last class
        elif kind == "usage":
            first = int(tensors["centroids"][:, 0].argmax())
            blocks = np.zeros(tensors["centroids"].shape)
            blocks[first, 0], blocks[first - 1, -1] = 30.0, 30.0
            total = blocks.ravel()
        else:
            total = np.tile([30.0, *([15.0] * (len(OUTCOME_FIGURES) - 1))], 2)
        return total, Tally(asked=60, replies=58, dropped=2, bytes_down=300, bytes_up=28)


def phases(delivered: list[int]) -> Phases:
    """Sums as ours; nothing is preferred or planned, and a delivery is noted."""

    def deliver(flow: Flow, round: int, centroids: Any, made: ClusterSubmodels, preference: Any) -> Delivered:
        delivered.append(round)
        return Delivered(10.0)

    return Phases(
        adapt=lambda flow, round: None,
        cluster=ours.cluster_by_sums,
        prefer=lambda flow: None,
        plan=lambda flow, round, centroids, preference: NOTHING,
        deliver=deliver,
        evaluate=ours.evaluate,
        collect=lambda flow, round, centroids: {"rounds": round},
    )


@contextmanager
def open_run_for(state: Path, courier: Courier, *overrides: str, **options: Any) -> Iterator[Flow]:
    """A run whose journal is in the folder `state`."""
    config = load_config(None, [*SETTINGS, *overrides])
    with open_run(
        config,
        BASE,
        reference=None,  # type: ignore[arg-type]
        grid=Grid(),  # type: ignore[arg-type]
        digest=run_digest(config, BASE, len(NODES)),
        state=f"sqlite:///{state / 'state.db'}",
        pictures=state,
        courier=courier,  # type: ignore[arg-type]
        **{"phases": phases([]), **options},
    ) as flow:
        yield flow


def run(state: Path, courier: Courier, *overrides: str, on_phase: Any = lambda record: None) -> tuple[RunRecord, list]:
    """A whole run, and the rounds of its deliveries."""
    delivered: list[int] = []
    with open_run_for(state, courier, *overrides, phases=phases(delivered), on_phase=on_phase) as flow:
        return flow.run(), delivered


def test_two_rounds_ask_for_their_sums_in_order_and_end_with_a_record(tmp_path: Path) -> None:
    courier, seen = Courier(), []
    record, delivered = run(tmp_path, courier, "run.rounds=2", on_phase=lambda r: seen.append(len(r.phases)))
    names = ["1-usage-0", "1-usage-1", "1-usage-2", "1-outcome-0", "2-usage-1", "2-outcome-0"]
    assert [name for _, name, _ in courier.asked] == names
    assert all(nodes == NODES for *_, nodes in courier.asked)  # sorted
    assert delivered == [1, 2]
    assert [done.round for done in record.rounds] == [1, 2]
    assert [f"{phase.round}-{phase.phase}" for phase in record.phases] == names
    assert seen == [1, 2, 3, 4, 4, 5, 6, 6]  # after each phase, and after each round
    np.testing.assert_allclose(sorted(record.last.centroids[:, 0]), [0, 1], atol=1e-6)
    np.testing.assert_allclose(record.last.counts, [30, 30])
    np.testing.assert_allclose(record.last.fleet, np.full((2, 8), 15) + np.eye(1, 8) * 15)
    assert (record.phones, record.epsilon, record.statistics) == (60, None, {"rounds": 2})
    assert [one["name"] for one in record.sums] == names
    assert record.phases[0].dropped == 2


def test_a_restarted_server_asks_only_for_what_is_missing_and_ends_alike(tmp_path: Path) -> None:
    first = Courier(lost="2-usage-1")
    with pytest.raises(Lost):
        run(tmp_path, first, "run.rounds=2")
    again = Courier()
    record, delivered = run(tmp_path, again, "run.rounds=2")
    assert [name for _, name, _ in again.asked] == ["2-usage-1", "2-outcome-0"]
    assert delivered == [1, 2]
    assert record.lost == {("usage-1", "late"): 1}
    (tmp_path / "other").mkdir()
    whole, _ = run(tmp_path / "other", Courier(), "run.rounds=2")
    np.testing.assert_array_equal(record.last.centroids, whole.last.centroids)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "phone.db", delta=1e-5, budget_epsilon=math.inf, dishonest=0.05, durable=False) as opened:
        yield opened


NOISY = ["privacy.noise=true", "privacy.epsilon=8"]


def test_epsilon_of_a_run_is_what_phones_were_charged_also_for_a_lost_sum(ledger: Ledger, tmp_path: Path) -> None:
    courier = Courier("usage-1", 1, ledger=ledger)
    with open_run_for(tmp_path, courier, *NOISY) as flow:
        with pytest.raises(Lost):
            flow.run()
        assert flow.record.epsilon == pytest.approx(ledger.spent())
        assert len(flow.record.sums) == 1
    with open_run_for(tmp_path, courier, *NOISY) as flow:
        record = flow.run()
    assert record.epsilon == record.rounds[-1].epsilon == pytest.approx(ledger.spent())
    assert len(ledger.entries()) == len(record.sums) + 1
    assert record.epsilon_server is not None
    assert record.epsilon is not None
    assert 8 < record.epsilon < record.epsilon_server
    with open_run_for(tmp_path, courier, *NOISY) as flow:  # from the journal alone
        assert flow.run().epsilon == record.epsilon


def test_a_sum_that_ended_before_its_vectors_left_costs_nothing(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(Lost):
        run(tmp_path, Courier("usage-1", 1, "early"), *NOISY, "privacy.reserve=1")
    record, _ = run(tmp_path, Courier(ledger=ledger), *NOISY, "privacy.reserve=1")
    assert record.lost == {("usage-1", "early"): 1}
    assert record.epsilon < 8  # type: ignore[operator]


def test_a_reserve_pays_for_a_sum_that_is_repeated(ledger: Ledger, tmp_path: Path) -> None:
    """The costliest is lost, by two phones that are asked no more; all of it is within the budget."""
    courier = Courier("outcome-0", 1, "unopened", ledger)
    record, _ = run(tmp_path, courier, *NOISY, "privacy.reserve=1", "run.rounds=2")
    lost, repeated = [nodes for _, name, nodes in courier.asked if name == "1-outcome-0"]
    assert (lost, repeated) == (NODES, [node for node in NODES if node not in NODES[3:5]])
    assert courier.asked[-1] == (2, "2-outcome-0", repeated)
    assert record.lost == {("outcome-0", "unopened"): 1}
    assert record.excluded == 2
    assert record.epsilon == pytest.approx(ledger.spent())
    assert 7 < record.epsilon <= 8  # type: ignore[operator]


def test_a_reserve_is_spent_once_also_by_a_server_that_was_stopped(tmp_path: Path) -> None:
    first = Courier("usage-1", 2)
    with pytest.raises(Lost):
        run(tmp_path, first, "privacy.reserve=1")
    assert [name for _, name, _ in first.asked] == ["1-usage-0", "1-usage-1", "1-usage-1"]
    again = Courier("outcome-0", 1)
    with pytest.raises(Lost):
        run(tmp_path, again, "privacy.reserve=1")
    assert [name for _, name, _ in again.asked].count("1-outcome-0") == 1


def test_another_configuration_may_not_go_on_with_a_journal(tmp_path: Path) -> None:
    run(tmp_path, Courier())
    with pytest.raises(StateError, match="the database belongs to run"):
        run(tmp_path, Courier(), "run.seed=1")


def test_a_cohort_is_a_sample_that_a_restart_draws_again(tmp_path: Path) -> None:
    courier = Courier()
    run(tmp_path, courier, "rounds.cohort=25", "privacy.min_cohort=20")
    cohorts = [nodes for *_, nodes in courier.asked]
    assert all(len(nodes) == 25 and nodes == sorted(set(nodes)) for nodes in cohorts)
    assert len({tuple(nodes) for nodes in cohorts}) > 1
    (tmp_path / "other").mkdir()
    again = Courier()
    run(tmp_path / "other", again, "rounds.cohort=25", "privacy.min_cohort=20")
    assert again.asked == courier.asked


def test_too_few_phones_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    courier = Courier()
    with pytest.raises(PrivacyError, match=r"the cohort has 60 phones, privacy\.min_cohort is 70"):
        run(tmp_path, courier, "privacy.min_cohort=70")
    assert courier.asked == []


def test_a_tier_that_nothing_fits_is_refused(tmp_path: Path) -> None:
    config = load_config(None, SETTINGS).model_copy(
        update={"tiers": (SimpleNamespace(name="tiny", share=1.0, macs=1.0, bytes=1),)}
    )
    with (
        pytest.raises(ConfigError, match="tier tiny"),
        open_run(config, BASE, None, Grid(), digest="0" * 64, state="sqlite://", pictures=tmp_path),  # type: ignore[arg-type]
    ):
        pass


def restarted(state: Path, nodes: list[int]) -> tuple[list[int], int]:
    """The phones of a run that is started while `nodes` are connected, and its cohort."""
    with open_run(
        load_config(None, SETTINGS),
        BASE,
        None,  # type: ignore[arg-type]
        Grid(nodes),  # type: ignore[arg-type]
        digest="0" * 64,
        state=f"sqlite:///{state / 'state.db'}",
        pictures=state,
        wait_for_nodes=lambda: nodes,
    ) as flow:
        return list(flow.nodes), flow.budget.cohort


def test_phones_that_came_first_stay_the_runs_phones(tmp_path: Path) -> None:
    """Also when other nodes are connected after a restart, while a cohort of the first ones is left."""
    for nodes in (NODES, NODES[5:], [*NODES[40:], *range(100, 140)]):
        assert restarted(tmp_path, nodes) == (NODES, 60)


def test_a_run_whose_phones_got_new_ids_goes_on_with_them(tmp_path: Path) -> None:
    """As after a restart of a SuperLink without a database: nobody answers under the ids that the journal has."""
    restarted(tmp_path, NODES)
    with pytest.raises(StateError, match=r"19 of the 60 phones of round 1 are .* 34 others; at least 20 .* 54"):
        restarted(tmp_path, list(range(41, 94)))
    renewed, again = list(range(100, 156)), list(range(200, 265))
    assert restarted(tmp_path, renewed) == (renewed, 60)
    assert restarted(tmp_path, renewed[:20]) == (renewed, 60)
    assert restarted(tmp_path, again) == (again, 60)


def test_steps_of_a_round_are_those_of_the_statistics_asked_for(tmp_path: Path) -> None:
    config = load_config(None, [*SETTINGS, "run.rounds=2", "clusters.iterations=2"])
    with open_run(config, BASE, None, Grid(), digest="0" * 64, state="sqlite://", pictures=tmp_path) as flow:  # type: ignore[arg-type]
        assert [step.name for step in flow.steps(1, COOCCURRENCE, USAGE)] == ["usage-0", "usage-1", "usage-2"]
        assert [step.name for step in flow.steps(2, COOCCURRENCE, OUTCOME)] == ["outcome-0"]
