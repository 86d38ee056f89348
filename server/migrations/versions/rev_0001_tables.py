"""Make the tables of a run's journal and of sums in progress.

Databases from before there were migrations have these tables: those stay as they are.
"""

from typing import Any

from alembic import op
from sqlalchemy import Column, Float, Integer, LargeBinary, String, Text

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make those that are not there."""
    _table(
        "run",
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("digest", String(64), nullable=False),
        Column("started", Float, nullable=False),
    )
    _table(
        "phases",
        *_phase(),
        Column("outcome", Text, nullable=False),
        Column("tensors", LargeBinary, nullable=False),
        Column("checksum", String(64), nullable=False),
        Column("seconds", Float, nullable=False),
    )
    for counts in ("refused", "lost"):
        _table(
            counts,
            *_phase(),
            Column("reason", String(32), primary_key=True),
            Column("count", Integer, nullable=False),
        )
    _table("charged_in_vain", *_phase(), Column("attempt", String(32), primary_key=True))
    _table(
        "excluded",
        Column("node", String(20), primary_key=True),
        Column("round", Integer, nullable=False),
        Column("phase", String(64), nullable=False),
        Column("reason", String(32), nullable=False),
    )
    _table(
        "sums_in_progress",
        *_phase(),
        Column("attempt", String(32), nullable=False),
        Column("number", Integer, nullable=False),
        Column("closed", Integer, nullable=False),
        Column("tally", Text, nullable=False),
        Column("total", LargeBinary, nullable=False),
    )
    _table(
        "sum_replies",
        *_phase(),
        Column("step", Integer, primary_key=True, autoincrement=False),
        Column("part", Integer, primary_key=True, autoincrement=False),
        Column("replies", LargeBinary, nullable=False),
        Column("checksum", String(64), nullable=False),
    )


def _table(name: str, *columns: Column[Any]) -> None:
    op.create_table(name, *columns, if_not_exists=True)


def _phase() -> tuple[Column[Any], Column[Any]]:
    return (
        Column("round", Integer, primary_key=True, autoincrement=False),
        Column("phase", String(64), primary_key=True),
    )
