"""From a run's record to the snapshot, figures by hand, and the heartbeat that keeps it fresh."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedcaptor.common.config import Config, load_config
from fedcaptor.common.errors import PostponedError
from fedcaptor.common.statistics import LOOK
from fedcaptor.server import monitor as monitors
from fedcaptor.server import snapshot
from fedcaptor.server.cluster_submodels import ClusterSubmodels
from fedcaptor.server.monitor import Monitor, figures_of
from fedcaptor.server.record import Delivered, LookRecord, PhaseRecord, RoundRecord, RunRecord
from fedcaptor.server.snapshot import Figure, Look, Snapshot
from tests.common.small_groups import small_groups

GROUPS = small_groups()
RUN = "ab" * 32
FLEET = np.array([[30, 24, 27, 9, 6, 3, 30, 6], [10, 8, 9, 3, 2, 1, 10, 4]], float)
CENTROIDS = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])


def plan(kept: int) -> Any:
    return SimpleNamespace(counts=lambda: {"a": kept})


def done(round: int, fleet: np.ndarray | None = None) -> RoundRecord:
    submodels = ClusterSubmodels([plan(2), plan(1)], (), (), ())
    return RoundRecord(round, CENTROIDS, np.array([30.5, 9.5]), submodels, fleet, Delivered(250.0), 1.5)


def record(*rounds: RoundRecord, config: Config | None = None, **changes: Any) -> RunRecord:
    vectors = {"messages": {"vector/ok": 38, "vector/late": 2}, "traffic": {"vector/down": 10, "vector/up": 20}}
    fields: dict[str, Any] = {
        "config": config or load_config(None, []),
        "groups": GROUPS,
        "phones": 40,
        "rounds": rounds,
        "phases": (
            PhaseRecord(1, "usage-0", 2.0, asked=40, replies=38, dropped=2, **vectors),
            PhaseRecord(1, "usage-1", 0.5, asked=40, replies=40),
            PhaseRecord(1, "plans", 1.5),
            PhaseRecord(1, "outcome-0", 1.0, asked=40, replies=10),
            PhaseRecord(2, "usage-1", 4.0, asked=40, replies=39, dropped=1, messages={"vector/ok": 39, "keys/ok": 40}),
        ),
        "sums": (
            {"name": "1-usage-0", "length": 6, "rho": 0.25, "deviation": 1.0},
            {"name": "1-usage-1", "length": 9, "rho": 0.25, "deviation": 2.0},
            {"name": "1-outcome-0", "length": 16, "rho": 0.125, "deviation": 3.0},
        ),
        "epsilon": 1.5,
        "epsilon_server": 2.5,
        "refused": {"nan": 3},
        "lost": {("usage-1", "late"): 1, ("usage-2", "late"): 2, ("scores-0", "discarded"): 1},
        "excluded": 2,
        "atlas": {},
        "statistics": {},
    }
    return RunRecord(**fields | changes)


def in_snapshot(found: RunRecord) -> Snapshot:
    """The snapshot of a run in progress."""
    monitor = Monitor(Path("nowhere"), RUN, found.config, 1000, simulated=True)
    monitor.running(found)
    return monitor.snapshot("running")


def test_a_run_in_its_second_round() -> None:
    found = in_snapshot(record(done(1, FLEET)))
    assert (found.run, found.status, found.round, found.phones) == (RUN, "running", 2, 40)
    assert (found.finished, found.rounds_planned) == (1, 1)
    assert (found.round_seconds.count, found.round_seconds.sum) == (1, 5.0)  # the second round is not over
    phases = {phase.phase: (phase.count, phase.seconds, phase.asked, phase.answered) for phase in found.phases}
    assert phases["usage"] == (3, 6.5, 120, 117)
    assert phases["plans"] == (1, 1.5, 0, 0)
    messages = {(each.phase, each.step): (each.results, each.down, each.up) for each in found.messages}
    assert messages == {
        ("usage", "vector"): ({"ok": 77, "late": 2}, 10, 20),
        ("usage", "keys"): ({"ok": 40}, 0, 0),
    }
    assert {(one.sum, one.reason): one.count for one in found.lost} == {
        ("usage", "late"): 3,
        ("scores", "discarded"): 1,
    }
    assert {each.sum: (each.count, each.rho, each.stddev) for each in found.sums} == {
        "usage": (2, 0.5, 2.0),
        "outcome": (1, 0.125, 3.0),
    }
    assert found.marks == ("seeded noise",)
    assert (found.epsilon, found.epsilon_server, found.epsilon_budget) == (1.5, 2.5, 8.0)
    assert found.rho_budget == pytest.approx(1.23, abs=0.02)  # what `fedcaptor privacy plan` adds up to for ε = 8


def test_every_private_figure_has_its_error() -> None:
    found = in_snapshot(record(done(1, FLEET)))
    noise = 3.0 * np.sqrt(10 / 40)  # ten of forty phones brought their share
    assert found.fleet.phones == Figure(value=40.0, stddev=noise * np.sqrt(2))
    assert found.fleet.macs_ratio is not None
    assert found.fleet.macs_ratio.value == pytest.approx(0.3)
    assert found.fleet.macs_ratio.stddev == pytest.approx(noise * np.sqrt(2 * (1 + 0.09)) / 40)
    means = {
        "agreement_ratio": 0.9,
        "cluster_agreement_ratio": 0.8,
        "fallback_ratio": 0.1,
        "parameters_ratio": 0.2,
        "personalised_ratio": 1.0,
        "drifted_ratio": 0.25,
    }
    for name, mean in means.items():
        assert getattr(found.fleet, name).value == pytest.approx(mean), name
    assert found.fleet.download_ratio == pytest.approx(0.25)
    assert [cluster.phones.value for cluster in found.clusters] == [30.5, 9.5]
    # Three blocks of three classes became two clusters: one of them may hold two blocks.
    assert [cluster.phones.stddev for cluster in found.clusters] == pytest.approx([2.0 * np.sqrt(3 * 2)] * 2)


def test_looks_are_told_from_the_first_round_on_and_their_phones_with_an_error() -> None:
    length = LOOK.length(GROUPS, 1)
    sums = tuple({"name": f"1-look-{n}", "length": 4 * length, "rho": 0.1, "deviation": 1.5} for n in range(3))
    phases = (PhaseRecord(1, "look-2", 1.0, asked=40, replies=10), PhaseRecord(1, "adaptation", 1.0))
    looks = (LookRecord(30.0, shipped=0.7, adapted=0.8, moved=True), LookRecord(9.0, 0.9, 0.9, moved=False))
    found = in_snapshot(record(phases=phases, sums=sums, looks=looks)).looks
    # A phone is counted by half; a quarter of the shares of noise; four blocks became two looks: one may hold three.
    assert found[0] == Look(
        look=0, phones=Figure(value=30.0, stddev=1.5 / 2 / 0.5 * np.sqrt(3)), shipped=0.7, adapted=0.8, moved=True
    )
    assert [each.moved for each in found] == [True, False]
    assert in_snapshot(record()).looks == ()


def test_before_the_first_round_nothing_is_claimed() -> None:
    found = in_snapshot(record(phases=(), sums=()))
    assert (found.round, found.clusters, found.finished) == (0, (), 0)
    assert found.fleet.macs_ratio is None


def test_without_sums_the_fleet_has_its_download_alone() -> None:
    found = in_snapshot(record(done(1))).fleet
    assert (found.macs_ratio, found.phones, found.download_ratio) == (None, None, 0.25)


def test_without_noise_there_is_no_epsilon_and_no_error() -> None:
    config = load_config(None, ["privacy.noise=false"])
    sums = ({"name": "1-outcome-0", "length": 16, "rho": None, "deviation": 0.0},)
    found = in_snapshot(record(done(1, FLEET), config=config, epsilon=None, epsilon_server=None, sums=sums))
    assert (found.noise, found.epsilon, found.epsilon_budget, found.rho_budget) == (False, None, None, None)
    assert found.fleet.macs_ratio is not None
    assert found.fleet.macs_ratio.stddev == 0


def test_more_clusters_than_labels_are_one_other() -> None:
    """Each round one of two clusters is another one: the 33rd and later are `other`."""
    history = [replace(done(number), centroids=np.eye(40)[[0, number]]) for number in range(1, 36)]
    first, other = in_snapshot(record(*history)).clusters
    assert (first.cluster, other.cluster) == ("0", "other")
    assert (other.phones.value, other.macs_ratio) == (9.5, None)


def test_tiers_count_by_their_share() -> None:
    config = load_config(None).model_copy(
        update={"tiers": (SimpleNamespace(name="low", share=0.25), SimpleNamespace(name="high", share=0.75))}
    )
    one = RoundRecord(
        1,
        np.ones((1, 10)) / 10,
        np.ones(1),
        ClusterSubmodels([plan(1), plan(2)], (), (), ()),
        None,
        Delivered(1.0),
        None,
    )
    figures = figures_of(record(one, config=config), 1000)
    small, large = (GROUPS.parameters_ratio({"a": kept}) for kept in (1, 2))
    (cluster,) = figures["clusters"]
    assert cluster.parameters_ratio == pytest.approx(0.25 * small + 0.75 * large)
    assert [(tier.tier, tier.parameters_ratio) for tier in figures["tiers"]] == [("low", small), ("high", large)]
    assert figures["tiers"][0].bytes == pytest.approx(4 * GROUPS.parameters({"a": 1}))


def monitor_in(folder: Path, seconds: float = 60.0) -> Monitor:
    return Monitor(folder, RUN, load_config(None), 1000, simulated=True, seconds=seconds)


def written(folder: Path) -> Snapshot:
    return snapshot.read(folder / snapshot.FILE)


@pytest.mark.parametrize(
    ("error", "status", "settings"),
    [
        (None, "ended", []),
        (None, "waiting", ["run.rounds=2"]),
        (None, "waiting", ["run.rounds=0", "privacy.rounds_per_period=1"]),
        (RuntimeError("broken"), "failed", []),
        (KeyboardInterrupt(), "stopped", []),
        (SystemExit(1), "stopped", []),
        (PostponedError("phones", "3 phones are connected"), "postponed", []),
    ],
)
def test_the_snapshot_says_how_a_run_ended(
    tmp_path: Path, error: BaseException | None, status: str, settings: list[str]
) -> None:
    def run(rounds: int) -> RunRecord:
        assert rounds == 1
        during.append(written(tmp_path))
        if error is not None:
            raise error
        return whole

    during: list[Snapshot] = []
    whole = record(done(1), config=load_config(None, settings))
    flow: Any = SimpleNamespace(run=run, record=whole)
    monitor = monitor_in(tmp_path)
    expected: Any = nullcontext() if error is None else pytest.raises(type(error))
    with expected, monitor.watching():
        monitor.follow(flow, 1)
    assert (during[0].status, during[0].ended) == ("running", None)
    found = written(tmp_path)
    assert (found.status, found.present, found.finished) == (status, None, 1)
    assert found.ended == (None if status in ("waiting", "postponed") else found.heartbeat)
    assert found.error == {"failed": type(error).__name__, "postponed": str(error)}.get(status, "")
    assert found.postponed == ("phones" if status == "postponed" else None)
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat"]


@pytest.mark.slow
def test_the_heart_beats_while_the_run_waits(tmp_path: Path) -> None:
    monitor = monitor_in(tmp_path, seconds=0.05)
    with monitor.watching():
        monitor.activity.begin(1, "usage-0")
        monitor.activity.ask("vector", 40, 38, 3600.0)
        monitor.activity.reply(7)
        first, end = written(tmp_path), time.monotonic() + 60
        while (found := written(tmp_path)).present.replied != 7 and time.monotonic() < end:  # type: ignore[union-attr]
            time.sleep(0.02)
    assert found.heartbeat > first.started
    assert found.present is not None
    assert (found.round, found.present.phase, found.present.step) == (1, "usage", "vector")
    assert (found.present.asked, found.present.replied, found.present.online) == (40, 7, 38)
    assert found.present.deadline == pytest.approx(found.present.started + 3600, abs=60)


def test_a_restart_keeps_its_figures_until_the_replay_is_over(tmp_path: Path) -> None:
    whole = record(done(1, FLEET))
    killed = monitor_in(tmp_path)
    killed.running(whole)  # then SIGKILL: nobody writes that it is over
    first = written(tmp_path)
    assert (first.status, first.phases_finished) == ("running", len(whole.phases))
    again = monitor_in(tmp_path)
    again.running(record(phases=whole.phases[:1]))
    assert written(tmp_path) == first
    with again.watching():
        found = written(tmp_path)
        assert (found.phases_finished, found.finished, found.started) == (len(whole.phases), 1, first.started)
        more = record(done(1, FLEET), phases=(*whole.phases, PhaseRecord(2, "plans", 1.0)))
        again.running(more)
        assert written(tmp_path).phases_finished == len(more.phases)
    other = Monitor(tmp_path, "cd" * 32, load_config(None), 1000, simulated=True)
    with other.watching():  # another run in the folder begins anew
        assert written(tmp_path).phases_finished == 0


def test_monitoring_that_fails_never_reaches_the_run(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(monitors, "figures_of", broken)
    monitor = monitor_in(tmp_path)
    with monitor.watching():
        monitor.running(record(done(1)))
    assert "the run goes on without it" in caplog.text
