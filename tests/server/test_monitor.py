"""From a run's record to the snapshot: figures by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedcaptor.common.config import Config, load_config
from fedcaptor.server import snapshot
from fedcaptor.server.cluster_submodels import ClusterSubmodels
from fedcaptor.server.monitor import Monitor, snapshot_of
from fedcaptor.server.record import Delivered, PhaseRecord, RoundRecord, RunRecord
from tests.common.small_groups import small_groups

GROUPS = small_groups()
RUN = "ab" * 32


def plan(kept: int) -> Any:
    return SimpleNamespace(counts=lambda: {"a": kept})


def done(round: int, fleet: np.ndarray | None = None) -> RoundRecord:
    submodels = ClusterSubmodels([plan(2), plan(1)], (), (), ())
    return RoundRecord(round, np.full((2, 3), 1 / 3), np.array([30.5, 9.5]), submodels, fleet, Delivered(250.0), 1.5)


def record(*rounds: RoundRecord, config: Config | None = None, **changes: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "config": config or load_config(None, []),
        "groups": GROUPS,
        "phones": 40,
        "rounds": rounds,
        "phases": (
            PhaseRecord(1, "usage-0", 2.0, asked=40, replies=38, dropped=2),
            PhaseRecord(1, "plans", 1.5),
            PhaseRecord(2, "usage-1", 4.0, asked=40, replies=39, dropped=1),
        ),
        "sums": (),
        "epsilon": 1.5,
        "epsilon_server": 2.5,
        "refused": {"nan": 3},
        "lost": {("usage-1", "late"): 1, ("usage-2", "late"): 2, ("scores-0", "discarded"): 1},
        "excluded": 2,
        "atlas": {},
        "statistics": {},
    }
    return RunRecord(**fields | changes)


def test_a_run_in_its_second_round() -> None:
    fleet = np.array([[30, 24, 27, 9, 6, 3, 30], [10, 8, 9, 3, 2, 1, 10]], float)
    found = snapshot_of(record(done(1, fleet)), RUN, 1000, "running", simulated=True)
    assert (found.run, found.status, found.round, found.phones) == (RUN, "running", 1, 40)
    assert (found.rounds.finished, found.rounds.failed) == (1, 0)
    assert (found.round_seconds.count, found.round_seconds.sum) == (1, 3.5)  # the second round is not over
    assert found.replies == {"ok": 77, "dropped": 3, "refused": 3}
    assert {(one.sum, one.reason): one.count for one in found.lost} == {
        ("usage", "late"): 3,
        ("scores", "discarded"): 1,
    }
    assert found.fleet.macs_ratio == pytest.approx(0.3)
    assert found.fleet.accuracy_before == pytest.approx(0.8)
    assert found.fleet.accuracy_after == pytest.approx(0.9)
    assert found.fleet.fallback_ratio == pytest.approx(0.1)
    assert found.fleet.download_ratio == pytest.approx(0.25)
    assert [cluster.phones for cluster in found.clusters] == [30.5, 9.5]
    assert found.marks == ("seeded noise",)


def test_before_the_first_round_nothing_is_claimed() -> None:
    found = snapshot_of(record(), RUN, 1000, "failed", simulated=False)
    assert (found.round, found.clusters, found.rounds.failed) == (0, (), 1)
    assert found.fleet.macs_ratio is None


def test_without_sums_the_fleet_has_its_download_alone() -> None:
    found = snapshot_of(record(done(1)), RUN, 1000, "ended", simulated=True).fleet
    assert (found.macs_ratio, found.download_ratio) == (None, 0.25)


def test_tiers_count_by_their_share() -> None:
    config = load_config(None).model_copy(
        update={"tiers": (SimpleNamespace(name="low", share=0.25), SimpleNamespace(name="high", share=0.75))}
    )
    one = RoundRecord(
        1, np.ones((1, 10)), np.ones(1), ClusterSubmodels([plan(1), plan(2)], (), (), ()), None, Delivered(1.0), None
    )
    (cluster,) = snapshot_of(record(one, config=config), RUN, 1000, "ended", simulated=True).clusters
    small, large = (GROUPS.parameters_ratio({"a": kept}) for kept in (1, 2))
    assert cluster.parameters_ratio == pytest.approx(0.25 * small + 0.75 * large)


@pytest.mark.parametrize("fails", [False, True])
def test_the_snapshot_says_how_a_run_ended(tmp_path: Path, fails: bool) -> None:
    def run() -> RunRecord:
        if fails:
            raise RuntimeError("the server stopped")
        return record(done(1))

    flow: Any = SimpleNamespace(run=run, record=record(done(1)))
    monitor = Monitor(tmp_path, RUN, 1000, simulated=True)
    if fails:
        with pytest.raises(RuntimeError):
            monitor.follow(flow)
    else:
        assert monitor.follow(flow).last.round == 1
    assert snapshot.read(tmp_path / snapshot.FILE).status == ("failed" if fails else "ended")
