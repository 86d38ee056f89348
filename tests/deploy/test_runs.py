"""Runs of a deployment: which one is next, when a round is due, and what a backup brings back."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest

from fedcaptor.common.errors import ConfigError, StateError
from fedcaptor.deploy import runs
from fedcaptor.deploy.archive import backup, restore
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.runs import next_name, run_on_schedule
from fedcaptor.deploy.superlink import FlowerRun, SuperLinkAwayError
from fedcaptor.server import snapshot
from fedcaptor.server.database import url_of
from fedcaptor.server.journal import Journal
from tests.server.test_exporter import make

pytestmark = pytest.mark.slow
DAY = 86_400.0


def ended(deployment: Deployment, name: str, status: Any, at: float) -> None:
    folder = deployment.runs / name
    folder.mkdir(exist_ok=True)
    snapshot.write(folder / snapshot.FILE, make(status=status, heartbeat=at))


@pytest.mark.parametrize(
    ("status", "name"),
    [
        ("running", "run-0001"),
        ("waiting", "run-0001"),
        ("stopped", "run-0001"),
        ("failed", "run-0001"),
        ("postponed", "run-0001"),
        ("ended", "run-0002"),
    ],
)
def test_an_unfinished_run_goes_on_and_an_ended_one_is_followed_by_the_next(
    deployment: Deployment, status: str, name: str
) -> None:
    assert next_name(deployment) == "run-0001"
    ended(deployment, "run-0001", status, 0.0)
    assert next_name(deployment) == name


class Link:
    """A SuperLink that is away again and again, once after it took the run and before it said so."""

    def __init__(self) -> None:
        self.calls, self.started = 0, 0

    def _answer(self) -> None:
        self.calls += 1
        if self.calls % 3:
            raise SuperLinkAwayError("nobody is there")

    def unfinished(self, name: str) -> FlowerRun | None:
        self._answer()
        return FlowerRun(7, False, False, False, "") if self.started else None

    def start(self, config: dict[str, Any]) -> int:
        self.started += 1
        raise SuperLinkAwayError("gone before the reply")

    def log(self, run_id: int, after: float) -> Iterator[tuple[str, float]]:
        yield "INFO :  the run failed: too few phones\nINFO :  DEPRECATED FEATURE: x\n", after + 1
        raise SuperLinkAwayError("cut")

    def run(self, run_id: int) -> FlowerRun:
        self._answer()
        return FlowerRun(run_id, True, False, False, "an exception")


def test_a_superlink_that_is_away_is_waited_for_and_gets_the_run_once(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, said, told = Link(), [], []

    def tell(of: Deployment) -> None:
        told.append(of)
        link._answer()

    monkeypatch.setattr(runs, "connected", lambda deployment: nullcontext(link))
    monkeypatch.setattr(runs, "tell_superlink", tell)
    monkeypatch.setattr(runs.time, "sleep", lambda seconds: None)
    with pytest.raises(StateError, match="run run-0001 failed: too few phones"):
        runs.run(deployment, "run-0001", said.append)
    assert (link.started, set(told)) == (1, {deployment})
    assert said == ["run run-0001 is under way: following it", "the run failed: too few phones"]


class Over(Exception):
    """Ends a schedule that has no end."""


def test_rounds_begin_when_they_are_due_and_failures_are_tried_again(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, begun, said = [1000 * DAY], [], []

    def run(deployment: Deployment, name: str, say: Any, rounds: int) -> None:
        begun.append((now[0] / DAY, name))
        if len(begun) == 2:
            raise StateError("too few phones")
        if len(begun) == 4:
            raise Over
        ended(deployment, name, "ended", now[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(runs, "run", run)
    with pytest.raises(Over):
        run_on_schedule(deployment, 7.0, said.append, sleep, lambda: now[0])
    assert begun == [
        (1000, "run-0001"),
        (1007, "run-0002"),
        (pytest.approx(1007 + 1 / 24), "run-0002"),
        (pytest.approx(1014 + 1 / 24), "run-0003"),
    ]
    assert "too few phones; trying again in 1 hour" in said


def test_a_backup_of_a_deployment_brings_all_of_it_back(deployment: Deployment, tmp_path: Path) -> None:
    state = deployment.runs / "run-0001" / "state.db"
    state.parent.mkdir()
    with closing(sqlite3.connect(state)) as database, closing(sqlite3.connect(deployment.superlink_database)) as other:
        for each in (database, other):
            each.execute("CREATE TABLE kept (x)")
            each.execute("INSERT INTO kept VALUES (42)")
            each.commit()
        database.execute("INSERT INTO kept VALUES (43)")  # a transaction under way
        backup(deployment, tmp_path / "copy.tar")
    assert stat.S_IMODE((tmp_path / "copy.tar").stat().st_mode) == 0o600
    template = f"sqlite:///{tmp_path}/{{run}}.db"
    deployment.environment_file.write_text(f"FEDCAPTOR_STATE={template}\n")
    (deployment.runs / "not-begun").mkdir()
    Journal(url_of(template, "run-0001"), "a" * 64).close()
    backup(deployment, tmp_path / "elsewhere.tar")
    (tmp_path / "run-0001.db").unlink()
    restore(tmp_path / "elsewhere.tar", tmp_path / "second")
    assert [path.name for path in tmp_path.glob("*.db")] == ["run-0001.db"]
    assert not list((tmp_path / "second").glob("state-database*"))
    back = restore(tmp_path / "copy.tar", tmp_path / "back")
    for file in (back.runs / "run-0001" / "state.db", back.superlink_database):
        with closing(sqlite3.connect(file)) as database:
            assert database.execute("SELECT x FROM kept").fetchall() == [(42,)]
    assert back.enrolled_keys() == deployment.enrolled_keys()
    assert stat.S_IMODE(back.operator_key.stat().st_mode) == 0o600
    assert back.operator_key.read_bytes() == deployment.operator_key.read_bytes()
    assert stat.S_IMODE(back.secrets.stat().st_mode) == 0o700
    with pytest.raises(ConfigError, match="is not empty"):
        restore(tmp_path / "copy.tar", tmp_path / "back")
    content = (tmp_path / "copy.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match="damaged"):
        restore(tmp_path / "cut.tar", tmp_path / "other")
