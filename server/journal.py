"""Store every finished phase of a run before the next begins, so that a stopped run goes on from the last one.

All is in one database, SQLite or PostgreSQL, given by URL. A kill at any moment costs the phase in flight at most.
"""

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Float,
    Integer,
    LargeBinary,
    Row,
    String,
    Table,
    Text,
    and_,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from fedcaptor.common.errors import StateError
from fedcaptor.common.messages import REASONS
from fedcaptor.server import sum_log
from fedcaptor.server.database import connect, exclusive, explained, make_schema
from fedcaptor.server.migrations import upgrade
from fedcaptor.server.sum_log import StoredSumLog

LOST: Mapping[str, str] = MappingProxyType(
    {
        "early": "too few phones before any vector was sent: charged to nobody",
        "late": "too few phones afterwards: charged to those that sent one",
        "discarded": "honest phones cannot have made it: charged to all in it",
        "unopened": "phones that are known now sent shares that do not open: charged to all in it",
    }
)
"""Why a sum came to nothing, by the code that counts it."""

Result = tuple[dict[str, Any], dict[str, NDArray[Any]]]

_metadata = sum_log.metadata
_run = Table(
    "run",
    _metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("started", Float, nullable=False),
)
_phases = Table(
    "phases",
    _metadata,
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("phase", String(64), primary_key=True),
    Column("outcome", Text, nullable=False),
    Column("tensors", LargeBinary, nullable=False),
    Column("checksum", String(64), nullable=False),
    Column("seconds", Float, nullable=False),
)


def _counts(name: str) -> Table:
    """Make a table that counts what went wrong in a phase, by reason."""
    return Table(
        name,
        _metadata,
        Column("round", Integer, primary_key=True, autoincrement=False),
        Column("phase", String(64), primary_key=True),
        Column("reason", String(32), primary_key=True),
        Column("count", Integer, nullable=False),
    )


_refused, _lost = _counts("refused"), _counts("lost")
_in_vain = Table(  # tries of sums that were lost after their vectors had left
    "charged_in_vain",
    _metadata,
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("phase", String(64), primary_key=True),
    Column("attempt", String(32), primary_key=True),
)
_dates = Table(  # when a phase was over, or a try that was lost, in seconds since 1970
    "dates",
    _metadata,
    Column("round", Integer, primary_key=True, autoincrement=False),
    Column("phase", String(64), primary_key=True),
    Column("attempt", String(32), primary_key=True),  # "" of the phase itself
    Column("at", Float, nullable=False),
)
_excluded = Table(
    "excluded",
    _metadata,
    Column("node", String(20), primary_key=True),  # an unsigned integer of 64 bits, in decimal
    Column("round", Integer, nullable=False),
    Column("phase", String(64), nullable=False),
    Column("reason", String(32), nullable=False),
)


def _checksum(outcome: str, blob: bytes) -> str:
    return hashlib.sha256(hashlib.sha256(outcome.encode()).digest() + blob).hexdigest()


def _encode(result: Result) -> tuple[str, bytes]:
    outcome, tensors = result
    text = json.dumps(outcome, sort_keys=True, allow_nan=False)
    return text, safetensors.numpy.save({name: np.array(value, order="C") for name, value in tensors.items()})


def _decode(row: Row[Any]) -> Result:
    blob = bytes(row.tensors)
    if _checksum(row.outcome, blob) != row.checksum:
        raise StateError(f"round {row.round}, phase {row.phase}: stored state is damaged; restore the database")
    try:
        return json.loads(row.outcome), safetensors.numpy.load(blob)
    except (ValueError, SafetensorError) as error:
        raise StateError(f"round {row.round}, phase {row.phase}: stored state cannot be read: {error}") from error


class Journal:
    """Hold the finished phases of one run. A database of another `run_digest` is refused with StateError.

    `clock`: seconds since 1970, by which phases have their dates.
    """

    def __init__(self, url: str, run_digest: str, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._pending: Counter[tuple[int, str, str]] = Counter()
        with explained("the state database cannot be opened"):
            self._engine = connect(url)
        try:
            self._open(url, run_digest)
        except BaseException:
            self.close()
            raise

    def _open(self, url: str, run_digest: str) -> None:
        with explained("the state database cannot be opened"), exclusive(self._engine) as connection:
            make_schema(connection, url)
            upgrade(connection)
            stored = connection.execute(select(_run.c.digest)).scalar_one_or_none()
            if stored is None:
                connection.execute(insert(_run).values(id=1, digest=run_digest, started=self.clock()))
        if stored not in (None, run_digest):
            raise StateError(
                f"the database belongs to run {stored[:12]}, not {run_digest[:12]}; "
                "use the configuration, weights and statistics that it began with, or another database"
            )

    def phase(self, round: int, name: str, compute: Callable[[], Result]) -> Result:
        """Return the stored result of phase `name`, or that of `compute`, stored in one transaction with its refusals.

        A fresh result is read back from what was stored: a replay sees the very same values. When `compute` raises,
        nothing is stored.
        """
        found = self.stored(round, name)
        if found is not None:
            return found
        self._forget(round, name)
        begin = time.monotonic()
        try:
            result = compute()
        except BaseException:
            self._forget(round, name)
            raise
        seconds = time.monotonic() - begin
        try:
            outcome, blob = _encode(result)
        except (TypeError, ValueError, SafetensorError) as error:
            raise StateError(f"round {round}, phase {name}: the result cannot be stored: {error}") from error
        checksum = _checksum(outcome, blob)
        row = {"round": round, "phase": name, "outcome": outcome, "tensors": blob, "checksum": checksum}
        with explained(f"round {round}, phase {name}: cannot be stored"), self._engine.begin() as connection:
            try:
                connection.execute(insert(_phases).values(**row, seconds=seconds))
                self._flush(connection, round, name)
                attempt = sum_log.forget(connection, {"round": round, "phase": name})
                connection.execute(delete(_in_vain).where(*_try(round, name, attempt)))  # had it been lost before
                self._date(connection, round, name)
            except IntegrityError:
                other = f"round {round}, phase {name}: another server writes this database; stop one"
                raise StateError(other) from None
        self._forget(round, name)
        return json.loads(outcome), safetensors.numpy.load(blob)

    def stored(self, round: int, name: str) -> Result | None:
        """Return the stored result of a phase, or None. Raises StateError when it is damaged."""
        with explained(), self._engine.connect() as connection:
            query = select(_phases).where(_phases.c.round == round, _phases.c.phase == name)
            row = connection.execute(query).one_or_none()
        return None if row is None else _decode(row)

    def refuse(self, round: int, name: str, reason: str, count: int = 1) -> None:
        """Count refused replies of the phase in flight; stored with the phase. Unknown reasons count as malformed."""
        self._pending[(round, name, reason if reason in REASONS else "malformed")] += count

    def refused(self, round: int | None = None) -> dict[str, int]:
        """Return how many replies were refused, by reason, in one round or in all."""
        query = select(_refused.c.reason, func.sum(_refused.c.count)).group_by(_refused.c.reason)
        if round is not None:
            query = query.where(_refused.c.round == round)
        with explained(), self._engine.connect() as connection:
            return {reason: int(count) for reason, count in connection.execute(query)}

    def sum_log(self, round: int, name: str, first: int) -> StoredSumLog:
        """Open the log of the masked sum of a phase. `first`: the number of the try that a new sum begins with."""
        return StoredSumLog(self._engine, round, name, first)

    def lose(self, round: int, name: str, reason: str, blamed: Iterable[int] = ()) -> None:
        """Count a sum of phase `name` that came to nothing, by one of `LOST`; stored at once, as its phase is not.

        `blamed`: nodes that it was lost by, which are left out from now on. The sum in progress is deleted.
        """
        with explained(), self._engine.begin() as connection:
            _count(connection, _lost, {"round": round, "phase": name, "reason": reason}, 1)
            known = set(connection.execute(select(_excluded.c.node)).scalars())
            for node in sorted({str(node) for node in blamed} - known):
                row = {"node": node, "round": round, "phase": name, "reason": reason}
                connection.execute(insert(_excluded).values(**row))
            attempt = sum_log.forget(connection, {"round": round, "phase": name})
            if reason != "early":
                connection.execute(delete(_in_vain).where(*_try(round, name, attempt)))
                connection.execute(insert(_in_vain).values(round=round, phase=name, attempt=attempt))
                self._date(connection, round, name, attempt)

    def lost(self) -> dict[tuple[str, str], int]:
        """Return how many sums came to nothing, by phase and reason."""
        query = select(_lost.c.phase, _lost.c.reason, func.sum(_lost.c.count)).group_by(_lost.c.phase, _lost.c.reason)
        with explained(), self._engine.connect() as connection:
            return {(phase, reason): int(count) for phase, reason, count in connection.execute(query)}

    def excluded(self) -> set[int]:
        """Return the nodes that a sum was lost by, provably."""
        with explained(), self._engine.connect() as connection:
            return {int(node) for node in connection.execute(select(_excluded.c.node)).scalars()}

    def in_vain(self, round: int | None = None, name: str | None = None) -> list[float]:
        """Return when sums were lost after their vectors had left: in one phase of a round, or in all.

        A sum that is lost, asked again under its name and then stored is not one of them: phones are charged once.
        """
        same = [_dates.c[key] == _in_vain.c[key] for key in ("round", "phase", "attempt")]
        query = select(_dates.c.at).select_from(_in_vain.outerjoin(_dates, and_(*same))).order_by(_dates.c.at)
        if round is not None and name is not None:
            query = query.where(*_of_phase(_in_vain, round, name))
        with explained(), self._engine.connect() as connection:
            return [_known(at) for at in connection.execute(query).scalars()]

    def date(self, round: int, name: str) -> float:
        """Return when a phase was over; infinite where a database of an earlier version does not know."""
        query = select(_dates.c.at).where(*_of_phase(_dates, round, name), _dates.c.attempt == "")
        with explained(), self._engine.connect() as connection:
            return _known(connection.execute(query).scalar_one_or_none())

    def seconds(self) -> dict[tuple[int, str], float]:
        """Return the seconds that every finished phase took, by (round, phase)."""
        with explained(), self._engine.connect() as connection:
            rows = connection.execute(select(_phases.c.round, _phases.c.phase, _phases.c.seconds))
            return {(row.round, row.phase): row.seconds for row in rows}

    def close(self) -> None:
        """Close the connections to the database."""
        self._engine.dispose()

    def _date(self, connection: Connection, round: int, name: str, attempt: str = "") -> None:
        connection.execute(delete(_dates).where(*_of_phase(_dates, round, name), _dates.c.attempt == attempt))
        connection.execute(insert(_dates).values(round=round, phase=name, attempt=attempt, at=self.clock()))

    def _forget(self, round: int, name: str) -> None:
        for key in [key for key in self._pending if key[:2] == (round, name)]:
            del self._pending[key]

    def _flush(self, connection: Connection, round: int, name: str) -> None:
        for (at, phase, reason), count in self._pending.items():
            if (at, phase) == (round, name):
                _count(connection, _refused, {"round": at, "phase": phase, "reason": reason}, count)


def _known(date: float | None) -> float:
    return math.inf if date is None else date


def _of_phase(table: Table, round: int, phase: str) -> list[ColumnElement[bool]]:
    return [table.c.round == round, table.c.phase == phase]


def _try(round: int, phase: str, attempt: str) -> list[ColumnElement[bool]]:
    return [*_of_phase(_in_vain, round, phase), _in_vain.c.attempt == attempt]


def _count(connection: Connection, table: Table, keys: Mapping[str, Any], count: int) -> None:
    """Add `count` to a row's count, which begins at 0."""
    found = update(table).where(*(table.c[name] == value for name, value in keys.items()))
    if connection.execute(found.values(count=table.c.count + count)).rowcount == 0:
        connection.execute(insert(table).values(**keys, count=count))
