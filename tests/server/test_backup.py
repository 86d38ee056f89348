"""Copies of databases in use, and what is made of them."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import traceback
from contextlib import closing
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from benchmarks.deployment import Fleet, registered_key, start_superlink
from fedcaptor.common.errors import StateError
from fedcaptor.server import backup as backups
from fedcaptor.server.backup import backup, holds_run, restore
from fedcaptor.server.database import url_of
from fedcaptor.server.journal import Journal
from tests.postgresql import PASSWORD, PostgreSQL, environment

DIGEST = "a" * 64


@pytest.fixture(autouse=True)
def with_programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL's client programs are where its server is."""
    if "postgresql" in request.node.name:
        values = environment(request.getfixturevalue("postgresql").place)
        for name in ("PATH", "LD_LIBRARY_PATH"):
            monkeypatch.setenv(name, values.get(name, ""))


@pytest.fixture
def other(request: pytest.FixtureRequest, url: str, tmp_path: Path) -> str:
    """The URL of another place for a database, of the same kind as `url`."""
    if url.startswith("sqlite"):
        return f"sqlite:///{tmp_path / 'other.db'}"
    return str(request.getfixturevalue("postgresql").create())


def write_on(url: str, done: Connection) -> None:
    journal = Journal(url, DIGEST)
    for round in count():
        journal.phase(round, "usage-0", lambda: ({}, {"x": np.full(50_000, round)}))  # noqa: B023
        done.send(round)


def check_rounds(url: str) -> int:
    """The rounds that were stored: each is whole, and none is missing between two."""
    journal = Journal(url, DIGEST)
    rounds = sorted(round for round, _ in journal.seconds())
    assert rounds == list(range(len(rounds)))
    for round in rounds:
        found = journal.stored(round, "usage-0")
        assert found is not None
        np.testing.assert_array_equal(found[1]["x"], np.full(50_000, round))
    journal.close()
    return len(rounds)


@pytest.mark.slow
def test_a_copy_of_a_database_in_use_is_of_one_moment(url: str, other: str, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    context = get_context("fork")
    done, end = context.Pipe(duplex=False)
    server = context.Process(target=write_on, args=(url, end))
    server.start()
    try:
        while done.recv() < 10:
            pass
        backup(url, file)
        while done.poll():
            done.recv()
        later = done.recv()  # the server goes on
    finally:
        server.kill()
        server.join()
    restore(other, file)
    assert 10 < check_rounds(other) < later + 1 <= check_rounds(url)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    Journal(other, DIGEST).phase(1000, "usage-0", lambda: ({}, {}))


def test_what_is_there_is_not_overwritten(url: str, other: str, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    for number, place in enumerate((url, other)):
        Journal(place, DIGEST).phase(number, "usage-0", lambda: ({}, {}))
    backup(url, file)
    with pytest.raises(StateError, match=r"exists: stop what uses it|already exists.*empty before a restore"):
        restore(other, file)
    assert set(Journal(other, DIGEST).seconds()) == {(1, "usage-0")}


def test_a_copy_that_fails_leaves_the_one_before(url: str, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    Journal(url, DIGEST).close()
    backup(url, file)
    before = file.read_bytes()
    with pytest.raises(StateError, match=r"does not exist|pg_dump failed"):
        backup(f"{url}_missing", file)
    assert file.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} <= {"copy", "state.db"}


def test_a_damaged_copy_is_refused(url: str, other: str, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    Journal(url, DIGEST).phase(0, "usage-0", lambda: ({}, {"x": np.zeros(10_000)}))
    backup(url, file)
    content = bytearray(file.read_bytes())
    for cut in (content[: len(content) // 2], content[:100] + bytes(1000) + content[1100:], b"no database" * 100):
        file.write_bytes(cut)
        with pytest.raises(StateError, match=r"damaged|no SQLite database"):
            restore(other, file)
    with pytest.raises(StateError, match="does not exist: correct the path"):
        restore(other, tmp_path / "missing")
    assert Journal(other, DIGEST).seconds() == {}


@pytest.mark.slow
def test_a_locked_database_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backups, "LOCKED_SECONDS", 0.1)
    file = tmp_path / "state.db"
    Journal(f"sqlite:///{file}", DIGEST).close()
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StateError, match="cannot be copied: another process has locked it"):
            backup(f"sqlite:///{file}", tmp_path / "copy")
    backup(f"sqlite:///{file}", tmp_path / "copy")


def test_a_server_that_was_killed_while_it_wrote_is_copied_without_its_last_transaction(tmp_path: Path) -> None:
    """It leaves a journal with which SQLite undoes what is half written."""
    file, copy = tmp_path / "state.db", tmp_path / "copy"
    Journal(f"sqlite:///{file}", DIGEST).phase(0, "usage-0", lambda: ({}, {"x": np.full(50_000, 0)}))
    code = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('PRAGMA cache_spill = 1'); c.execute('PRAGMA cache_size = 1'); c.execute('BEGIN'); "
        "c.execute('DELETE FROM phases'); c.execute('CREATE TABLE more AS SELECT zeroblob(1000000)'); "
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, file])
    assert (tmp_path / "state.db-journal").stat().st_size > 0
    backup(f"sqlite:///{file}", copy)
    restore(f"sqlite:///{tmp_path / 'other.db'}", copy)
    assert check_rounds(f"sqlite:///{tmp_path / 'other.db'}") == 1


@pytest.mark.slow
def test_runs_in_schemas_of_one_postgresql_database_are_copied_one_by_one(
    postgresql: PostgreSQL, tmp_path: Path
) -> None:
    template, other = (f"{postgresql.create()}?schema={{run}}" for _ in range(2))
    runs = {name: url_of(template, name) for name in ("run-0001", "Run.2")}
    assert not any(map(holds_run, runs.values()))
    for number, url in enumerate(runs.values()):
        Journal(url, f"{number}" * 64).phase(number, "usage-0", lambda: ({}, {}))
    with pytest.raises(StateError, match="belongs to run 0000"):
        Journal(runs["run-0001"], DIGEST)
    backup(runs["Run.2"], tmp_path / "copy")
    with pytest.raises(StateError, match="another schema"):
        restore(url_of(postgresql.create() + "?schema={run}", "run-0001"), tmp_path / "copy")
    restore(url_of(other, "Run.2"), tmp_path / "copy")
    assert set(Journal(url_of(other, "Run.2"), "1" * 64).seconds()) == {(1, "usage-0")}
    assert not holds_run(url_of(other, "run-0001"))
    with pytest.raises(StateError, match="already exists"):
        restore(runs["Run.2"], tmp_path / "copy")
    with pytest.raises(StateError, match="the database's schema has 1 to 63 letters"):
        Journal(url_of(template, "a b"), DIGEST)


@pytest.mark.slow
def test_a_password_is_in_no_error_of_postgresql(postgresql: PostgreSQL, tmp_path: Path) -> None:
    good, said = postgresql.create(), []
    for url in (good.replace(PASSWORD, f"{PASSWORD}-no"), postgresql.url("missing"), f"mysql://{PASSWORD}", PASSWORD):
        with pytest.raises(StateError) as error:
            backup(url, tmp_path / "copy")
        said.append("".join(traceback.format_exception(error.value)))
    assert PASSWORD not in "".join(said)
    assert 'password authentication failed for user "owner"' in said[0]
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_without_postgresqls_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StateError, match="pg_dump is not installed: install PostgreSQL's client programs"):
        backup("postgresql://localhost/state", tmp_path / "copy")


def known(fleet: Fleet) -> str:
    """The table of phones that the SuperLink knows."""
    return fleet.flwr("supernode", "list", "own").partition("List")[2]


@pytest.mark.long
def test_a_superlink_that_is_made_anew_from_a_copy_knows_its_phones(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    fleet = Fleet(tmp_path / "one")
    database, copy, anew = (tmp_path / name for name in ("superlink.db", "copy", "anew.db"))
    try:
        start_superlink(fleet, "--database", database)
        registered_key(fleet, "node0")
        before = known(fleet)
        assert "registered" in before
        backup(f"sqlite:///{database}", copy)
        registered_key(fleet, "node1")  # the SuperLink goes on, and the copy has nothing of it
        assert known(fleet) != before
    finally:
        fleet.stop()
    restore(f"sqlite:///{anew}", copy)
    (tmp_path / "two").mkdir()
    fleet = Fleet(tmp_path / "two")
    try:
        start_superlink(fleet, "--database", anew)
        assert known(fleet) == before
    finally:
        fleet.stop()
