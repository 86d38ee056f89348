"""The state database's schema: old databases are brought up to date, whole or not at all, and newer ones refused."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from fedcaptor.common.assets import asset
from fedcaptor.common.errors import StateError
from fedcaptor.server.database import connect, exclusive
from fedcaptor.server.journal import Journal
from fedcaptor.server.migrations import FOLDER, upgrade
from fedcaptor.server.sum_log import metadata

DIGEST = "a" * 64
GOLDEN = Path(__file__).parents[1] / "golden" / "state_before_migrations.db"
"""Written by the last version without migrations, and vacuumed into small pages."""

NEXT = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "next", "{head}"
def upgrade():
    op.add_column("phases", sa.Column("added", sa.Float))
    {more}
"""


@pytest.fixture
def old(tmp_path: Path) -> str:
    """The URL of a database from before there were migrations."""
    return f"sqlite:///{shutil.copy(GOLDEN, tmp_path / 'old.db')}"


def with_next_step(tmp_path: Path, more: str = "") -> Path:
    """The migrations and one more, which adds a column."""
    folder = Path(shutil.copytree(FOLDER, tmp_path / "100 % migrations"))
    head = sorted(path.stem.split("_")[1] for path in folder.glob("versions/rev_*.py"))[-1]
    (folder / "versions" / "rev_next.py").write_text(NEXT.format(head=head, more=more))
    return folder


def columns(url: str) -> set[str]:
    with closing(connect(url).connect()) as connection:
        return {column["name"] for column in inspect(connection).get_columns("phases")}


def check_golden(url: str) -> None:
    """All that the old version stored is there, and its sum goes on."""
    journal = Journal(url, DIGEST)
    assert journal.stored(1, "nodes") == ({"nodes": [7, 2**64 - 1]}, {})
    stored = journal.stored(1, "usage-0")
    assert stored is not None
    assert stored[0] == {"counts": [3, 4], "epsilon": 0.5}
    np.testing.assert_array_equal(stored[1]["centroids"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert (journal.refused(), journal.lost()) == ({"nan": 2}, {("usage-1", "unopened"): 1})
    assert (journal.in_vain(), journal.excluded()) == ([math.inf], {2**64 - 1})  # of unknown date
    log = journal.sum_log(1, "usage-1", 0)
    assert (log.attempt, log.number, log.closed, log.tally) == ("c" * 32, 1, 1, {"asked": 4})
    assert list(log.replies(0)) == [(7, b"keys")]
    np.testing.assert_array_equal(log.total(), np.arange(4))
    journal.phase(1, "usage-1", lambda: ({}, {}))
    journal.close()


def test_a_database_from_before_migrations_is_brought_up_to_date(old: str) -> None:
    check_golden(old)
    with pytest.raises(StateError, match="belongs to run"):
        Journal(old, "b" * 64)


def test_migrations_make_the_tables_that_the_code_uses(url: str) -> None:
    Journal(url, DIGEST).close()
    with connect(url).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_database_from_before_migrations_ends_with_the_same_tables(old: str) -> None:
    Journal(old, DIGEST).close()
    with connect(old).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_later_step_keeps_what_is_stored(old: str, tmp_path: Path) -> None:
    folder = with_next_step(tmp_path)
    for _ in range(2):
        with exclusive(connect(old)) as connection:
            upgrade(connection, folder)
    assert "added" in columns(old)
    with connect(old).begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM phases WHERE added IS NULL")).scalar_one() == 2
    with pytest.raises(StateError, match=r"has schema next, .* none newer than \d+: install the version that wrote it"):
        Journal(old, DIGEST)


def test_a_step_that_fails_changes_nothing(url: str, tmp_path: Path) -> None:
    Journal(url, DIGEST).close()
    folder, before = with_next_step(tmp_path, "raise RuntimeError"), columns(url)
    with pytest.raises(RuntimeError), exclusive(connect(url)) as connection:
        upgrade(connection, folder)
    assert columns(url) == before
    Journal(url, DIGEST).close()


@pytest.mark.long
def test_processes_that_open_a_new_database_at_once(url: str) -> None:
    code = f"""
import sys
from fedcaptor.server.journal import Journal
print("ready", flush=True)
sys.stdin.readline()
Journal(sys.argv[1], {DIGEST!r}).phase(1, "nodes-" + sys.argv[2], lambda: ({{}}, {{}}))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, url, str(number)],
            cwd=asset("pyproject.toml").parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0] * 3
    assert len(Journal(url, DIGEST).seconds()) == 3
