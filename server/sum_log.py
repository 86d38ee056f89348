"""Keep a masked sum in progress in the journal's database, so that a restarted server goes on with that very sum.

Phones answer a step of a sum once, and are charged when their vector leaves: a server that began anew would ask them to
pay again. So the name of the try, and what the server accepted in each step that is over, are stored before the next
step begins. A step that was not over is asked again; phones send the bytes that they sent before. Of vectors there is
their sum alone, with its masks on, as in the server's memory. All of it is deleted in the transaction that stores the
phase's result, or that the sum was lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    delete,
    insert,
    select,
    update,
)

from fedcaptor.common.errors import StateError
from fedcaptor.server.database import explained

BATCH = 256
"""Replies in a row of the database, and at most in memory until they are written."""

metadata = MetaData()
_sums = Table(
    "sums_in_progress",
    metadata,
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("phase", String(64), primary_key=True),
    Column("attempt", String(32), nullable=False),
    Column("number", Integer, nullable=False),
    Column("closed", Integer, nullable=False),
    Column("tally", Text, nullable=False),
    Column("total", LargeBinary, nullable=False),
)
_replies = Table(
    "sum_replies",
    metadata,
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("phase", String(64), primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("part", Integer, primary_key=True, autoincrement=False),
    Column("replies", LargeBinary, nullable=False),
    Column("checksum", String(64), nullable=False),
)


@dataclass
class SumLog:
    """Log one masked sum at a time: this one forgets it when it is gone, `StoredSumLog` does not.

    `attempt`: name of the try, "" before the first; `number`: how many came before it. `closed`: steps that are over.
    `tally`: what became of messages until then. `first`: the number to begin with.
    """

    first: int = 0
    attempt: str = ""
    number: int = 0
    closed: int = 0
    tally: dict[str, Any] = field(default_factory=dict)

    def begin(self, attempt: str, number: int, tally: dict[str, Any]) -> None:
        """Begin a try; what was stored of the one before is deleted."""
        self.attempt, self.number, self.closed, self.tally = attempt, number, 0, tally

    def add(self, node: int, kept: bytes) -> None:
        """Store what `ServerSum.add` returned for a reply of the step in progress."""

    def close(self, total: NDArray[np.uint32], tally: dict[str, Any]) -> None:
        """Store that the step in progress is over, with the accumulator and the tally so far."""
        self.closed, self.tally = self.closed + 1, tally

    def replies(self, step: int) -> Iterator[tuple[int, bytes]]:
        """Yield node and what was stored of each reply of a step that is over, in the order of `add`."""
        return iter(())

    def total(self) -> NDArray[np.uint32]:
        """Return the accumulator as it was last stored, uint32 [length]."""
        return np.zeros(0, np.uint32)


class StoredSumLog(SumLog):
    """Log the sum of a phase in a database. Raises StateError when that fails or what it holds is damaged."""

    def __init__(self, engine: Engine, round: int, phase: str, first: int) -> None:
        super().__init__(first)
        self._engine, self._key = engine, {"round": round, "phase": phase}
        self._batch: list[tuple[int, bytes]] = []
        self._parts = 0
        with self._transaction() as connection:
            row = connection.execute(select(_sums).where(*_of(_sums, self._key))).one_or_none()
            if row is not None:  # what belongs to a step that was not over is asked again
                unfinished = _replies.c.step >= row.closed
                connection.execute(delete(_replies).where(*_of(_replies, self._key), unfinished))
        if row is not None:
            super().begin(row.attempt, row.number, json.loads(row.tally))
            self.closed = row.closed

    def begin(self, attempt: str, number: int, tally: dict[str, Any]) -> None:
        super().begin(attempt, number, tally)
        self._batch, self._parts = [], 0
        with self._transaction() as connection:
            forget(connection, self._key)
            row = {"attempt": attempt, "number": number, "closed": 0, "tally": json.dumps(tally), "total": b""}
            connection.execute(insert(_sums).values(**self._key, **row))

    def add(self, node: int, kept: bytes) -> None:
        self._batch.append((node, kept))
        if len(self._batch) == BATCH:
            with self._transaction() as connection:
                self._write(connection)

    def close(self, total: NDArray[np.uint32], tally: dict[str, Any]) -> None:
        with self._transaction() as connection:
            self._write(connection)
            row = {"closed": self.closed + 1, "tally": json.dumps(tally), "total": total.astype("<u4").tobytes()}
            connection.execute(update(_sums).where(*_of(_sums, self._key)).values(**row))
        super().close(total, tally)
        self._parts = 0

    def replies(self, step: int) -> Iterator[tuple[int, bytes]]:
        query = select(_replies).where(*_of(_replies, self._key), _replies.c.step == step).order_by(_replies.c.part)
        with self._transaction() as connection:
            for row in connection.execute(query):
                yield from self._decoded(row.replies, row.checksum)

    def total(self) -> NDArray[np.uint32]:
        with self._transaction() as connection:
            found = connection.execute(select(_sums.c.total).where(*_of(_sums, self._key))).scalar_one()
        return np.frombuffer(found, "<u4").astype(np.uint32)

    def _write(self, connection: Connection) -> None:
        if not self._batch:
            return
        nodes, kept = zip(*self._batch, strict=True)
        blob = safetensors.numpy.save(
            {
                "nodes": np.array(nodes, np.uint64),
                "ends": np.cumsum([len(data) for data in kept]),
                "data": np.frombuffer(b"".join(kept), np.uint8),
            }
        )
        row = {"step": self.closed, "part": self._parts, "replies": blob, "checksum": hashlib.sha256(blob).hexdigest()}
        connection.execute(insert(_replies).values(**self._key, **row))
        self._batch, self._parts = [], self._parts + 1

    def _decoded(self, blob: bytes, checksum: str) -> Iterator[tuple[int, bytes]]:
        if hashlib.sha256(blob).hexdigest() != checksum:
            raise self._damaged()
        try:
            found = safetensors.numpy.load(bytes(blob))
            data, start = found["data"].tobytes(), 0
            for node, end in zip(found["nodes"].tolist(), found["ends"].tolist(), strict=True):
                yield node, data[start:end]
                start = end
        except (SafetensorError, KeyError, ValueError):
            raise self._damaged() from None

    def _damaged(self) -> StateError:
        round, phase = self._key["round"], self._key["phase"]
        return StateError(f"round {round}, phase {phase}: the sum in progress is damaged; restore the database")

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        what = "a sum in progress cannot be stored or read"
        with explained(what, "the disk"), self._engine.begin() as connection:
            yield connection


def forget(connection: Connection, key: Mapping[str, Any]) -> str:
    """Delete the sum in progress of the phase that `key` names by `round` and `phase`.

    Returns the name of its try, "" where there is none: a plain sum has none.
    """
    attempt = connection.execute(select(_sums.c.attempt).where(*_of(_sums, key))).scalar_one_or_none()
    for table in (_sums, _replies):
        connection.execute(delete(table).where(*_of(table, key)))
    return attempt or ""


def _of(table: Table, key: Mapping[str, Any]) -> list[ColumnElement[bool]]:
    return [table.c[name] == value for name, value in key.items()]
