"""A server that is killed, and databases that are locked, full, moved or stopped: nothing but the phase in flight goes.

Each test ends with the run going on, to the result that it would have had.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event

from fedcaptor.common.assets import asset
from fedcaptor.common.errors import StateError
from fedcaptor.server.database import connect
from fedcaptor.server.journal import Journal
from fedcaptor.server.sum_log import metadata
from tests.postgresql import PASSWORD, PostgreSQL, programs

DIGEST = "a" * 64
CHILDREN = get_context("fork")
TIMES = "seconds", "started", "at"


def work(journal: Journal) -> None:
    """A run of two phases, the second one a sum of two steps."""

    def summed() -> Any:
        log = journal.sum_log(1, "usage-0", 0)
        if not log.attempt:
            log.begin("b" * 32, 0, {"asked": 0})
        for step in range(log.closed, 2):
            log.add(7, b"reply %d" % step)
            log.close(np.full(3, step, np.uint32), {"asked": step})
        journal.refuse(1, "usage-0", "nan")
        return {"asked": log.tally}, {"replies": np.frombuffer(b"".join(r for _, r in log.replies(1)), np.uint8)}

    journal.phase(0, "nodes", lambda: ({"nodes": [7]}, {}))
    journal.phase(1, "usage-0", summed)


def contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables, without times."""
    found = {}
    with connect(url).connect() as connection:
        for table in metadata.sorted_tables:
            kept = [column for column in table.c if column.name not in TIMES]
            found[table.name] = sorted(
                tuple(row) for row in connection.execute(table.select().with_only_columns(*kept))
            )
    return found


def on_write(journal: Journal, number: int, then: Callable[[], None]) -> None:
    """Call `then` in the middle of a transaction, after write `number` from now on."""
    writes = count(1)

    @event.listens_for(journal._engine, "after_cursor_execute")
    def executed(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("INSERT", "UPDATE", "DELETE")) and next(writes) == number:
            then()


def killed_at(url: str, number: int) -> None:
    journal = Journal(url, DIGEST)
    on_write(journal, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
    work(journal)


@pytest.mark.long
def test_a_server_that_is_killed_in_any_transaction_goes_on_to_the_same_result(url: str, tmp_path: Path) -> None:
    unbroken = f"sqlite:///{tmp_path / 'unbroken.db'}"
    work(Journal(unbroken, DIGEST))
    for number in count(1):
        server = CHILDREN.Process(target=killed_at, args=(url, number))
        server.start()
        server.join()
        if server.exitcode == 0:  # it had fewer writes
            break
        assert server.exitcode == -signal.SIGKILL
        stopped = contents(url)
        for name in ("refused", "phases"):
            assert set(stopped[name]) <= set(contents(unbroken)[name])
        work(Journal(url, DIGEST))
        assert contents(url) == contents(unbroken)
        with connect(url).begin() as connection:  # the next one begins anew
            for table in metadata.sorted_tables:
                connection.execute(table.delete())
    assert number > 8


@pytest.mark.slow
def test_a_locked_database_is_waited_for_and_then_said(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    journal = Journal(f"sqlite:///{file}?timeout=0.1", DIGEST)
    code = (
        f"import sqlite3, sys; c = sqlite3.connect({str(file)!r}, isolation_level=None); c.execute('BEGIN EXCLUSIVE'); "
        "print('locked', flush=True); sys.stdin.readline()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(StateError, match=r"another process has locked it: end that process.*SQLITE_BUSY"):
            work(journal)
    finally:
        other.communicate("\n")
    work(journal)
    assert len(journal.seconds()) == 2


@pytest.mark.parametrize("replaced", [False, True])
def test_a_database_whose_file_was_taken_away_is_not_written_on(replaced: bool, tmp_path: Path) -> None:
    file, moved = tmp_path / "state.db", tmp_path / "moved.db"
    journal = Journal(f"sqlite:///{file}", DIGEST)
    journal.phase(0, "nodes", lambda: ({"nodes": [7]}, {}))
    file.rename(moved)
    if replaced:
        Journal(f"sqlite:///{file}", "b" * 64).close()
    with pytest.raises(StateError, match="its file was removed or replaced: put it back, or restore a backup"):
        work(journal)
    moved.rename(file)
    work(journal)
    assert len(Journal(f"sqlite:///{file}", DIGEST).seconds()) == 2


@pytest.mark.parametrize("content", [b"no database" * 100, b""])
def test_a_file_that_is_no_database_is_left_alone(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    file.write_bytes(content)
    if content:
        with pytest.raises(StateError, match=r"cannot be opened: the file is no SQLite database"):
            Journal(f"sqlite:///{file}", DIGEST)
        assert file.read_bytes() == content
    else:
        work(Journal(f"sqlite:///{file}", DIGEST))


FULL = """
import json, shutil, subprocess, sys
from contextlib import nullcontext
import numpy as np
import psycopg
from fedcaptor.common.errors import StateError
from fedcaptor.server.journal import Journal
from tests.postgresql import running

folder, kind = sys.argv[1:]
size = 512 if kind == "sqlite" else 16_384
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder], check=True)
print("mounted", flush=True)
with nullcontext() if kind == "sqlite" else running() as server:
    url = f"sqlite:///{folder}/state.db"
    if server:
        shutil.chown(folder, server.user)
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
            connection.execute("CREATE DATABASE state TABLESPACE small")
        url = server.url("state")
    journal, said = Journal(url, "a" * 64), []
    noise = np.random.default_rng(0).bytes(200 * size)
    result = lambda: ({}, {"noise": np.frombuffer(noise, np.uint8)})
    try:
        for round in range(100):
            journal.phase(round, "usage-0", result)
    except StateError as error:
        said.append(str(error))
    subprocess.run(["mount", "-o", f"remount,size={100 * size}k", folder], check=True)
    stored = Journal(url, "a" * 64).seconds()
    journal.phase(round, "usage-0", result)
    print(json.dumps([round, said, len(stored), len(journal.seconds())]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("sqlite", "the disk is full: make room (SQLITE_FULL)"),
        ("postgresql", "the server's disk is full: make room there (DiskFull)"),
    ],
)
def test_a_full_disk_stops_the_run_until_there_is_room(kind: str, why: str) -> None:
    """On a small file system that is mounted in a namespace of its own; PostgreSQL has its tables there, no more."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare to mount a small file system with")
    if kind == "postgresql" and (programs() is None or os.getuid()):
        pytest.skip("needs PostgreSQL's programs, and root to run them as another user in the namespace")
    apart = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--user", "--map-root-user"])]
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # PostgreSQL's user goes through it
        place = Path(folder, "small")
        place.mkdir()
        command = [*apart, sys.executable, "-c", FULL, str(place), kind]
        done = subprocess.run(command, cwd=asset("pyproject.toml").parent, capture_output=True, text=True)
    if not done.stdout.startswith("mounted"):
        pytest.skip(f"a small file system cannot be mounted: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    stopped_at, said, stored, in_the_end = json.loads(done.stdout.splitlines()[-1])
    assert said == [f"round {stopped_at}, phase usage-0: cannot be stored: {why}"]
    assert stored == stopped_at > 1
    assert in_the_end == stored + 1


@pytest.fixture
def restarted(postgresql: PostgreSQL) -> Any:
    yield postgresql
    postgresql.stop()
    postgresql.start()


@pytest.mark.slow
def test_a_postgresql_server_that_stops_between_phases_is_said_and_used_again(restarted: PostgreSQL) -> None:
    journal = Journal(restarted.create(), DIGEST)
    journal.phase(0, "nodes", lambda: ({"nodes": [7]}, {}))
    restarted.stop(signal.SIGQUIT)
    with pytest.raises(StateError, match="its server is away, or refuses user or database: start it"):
        work(journal)
    restarted.start()
    work(journal)
    assert len(journal.seconds()) == 2


@pytest.mark.slow
def test_a_postgresql_server_that_stops_in_a_transaction_has_none_of_it(restarted: PostgreSQL, tmp_path: Path) -> None:
    url, unbroken = restarted.create(), f"sqlite:///{tmp_path / 'unbroken.db'}"
    work(Journal(unbroken, DIGEST))
    journal = Journal(url, DIGEST)
    on_write(journal, 5, lambda: restarted.stop(signal.SIGQUIT))
    with pytest.raises(StateError):
        work(journal)
    restarted.start()
    work(Journal(url, DIGEST))
    assert contents(url) == contents(unbroken)


@pytest.mark.slow
def test_a_password_is_in_no_error_and_no_log(
    restarted: PostgreSQL, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(0)
    good = restarted.create()
    other = good.replace(PASSWORD, f"{PASSWORD}-no")
    said = []
    for url in (other, restarted.url("missing"), good.replace("127.0.0.1", "host.invalid")):
        with pytest.raises(StateError, match="cannot be opened") as error:
            Journal(url, DIGEST)
        said.append("".join(traceback.format_exception(error.value)))
    journal = Journal(good, DIGEST)
    restarted.stop(signal.SIGQUIT)
    with pytest.raises(StateError) as error:
        work(journal)
    said += ["".join(traceback.format_exception(error.value)), repr(journal), caplog.text, *capfd.readouterr()]
    assert PASSWORD not in "".join(said)
    assert caplog.records  # Alembic's, at least
