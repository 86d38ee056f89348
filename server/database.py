"""Open the state database, SQLite or PostgreSQL, and say what is wrong with it, never by which URL."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import SQLAlchemyError

from fedcaptor.common.errors import StateError

STATE = "FEDCAPTOR_STATE"
"""The environment variable with the state database's URL: run configuration goes to every phone, and this may hold a
password.
"""
LOCKED_SECONDS = 60
"""How long SQLite waits for another process: what it waits to store may have taken hours. `?timeout=` in a URL wins."""
_SCHEMA = re.compile(r"[A-Za-z0-9._-]{1,63}")
OPENING = 0x666564636170  # key of PostgreSQL's advisory lock: ours alone among all applications of a database
KNOWN: Mapping[str, str] = MappingProxyType(
    {
        "SQLITE_BUSY": "another process has locked it: end that process, or wait for it",
        "SQLITE_CANTOPEN": "its folder is missing or closed to this user: correct the path or the permissions",
        "SQLITE_CORRUPT": "it is damaged: restore a backup",
        "SQLITE_FULL": "the disk is full: make room",
        "SQLITE_NOTADB": "the file is no SQLite database: correct the path, or restore a backup",
        "SQLITE_READONLY": "this user may not write to it: correct the permissions of file and folder",
        "SQLITE_READONLY_DBMOVED": "its file was removed or replaced: put it back, or restore a backup",
        "DiskFull": "the server's disk is full: make room there",
        "ModuleNotFoundError": "its driver is missing: give postgresql://… and pip install 'fedcaptor[postgres]'",
        "OperationalError": "its server is away, or refuses user or database: start it, or correct the URL",
    }
)
"""What is wrong, and what to do, by SQLite's name of an error or the class of the driver's."""


@contextmanager
def explained(
    what: str = "the state database cannot be used", check: str = "the URL, its driver and the disk"
) -> Iterator[None]:
    """Turn the database's errors into StateError without their text, which may hold the URL's password.

    `what` cannot be done; `check`: what to look at where the error is none of `KNOWN`.
    """
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError, ImportError, ValueError) as error:
        name = _name(error)
        text = f"{what}: {KNOWN[name]} ({name})" if name in KNOWN else f"{what} ({name}); check {check}"
        raise StateError(text) from None


def _name(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error
    return getattr(cause, "sqlite_errorname", None) or type(cause).__name__


def url_of(template: str, run: str) -> str:
    """Return the URL of a run's database: `{run}` in `template` stands for the run's name."""
    return template.replace("{run}", quote(run, safe=""))


def place_of(url: str) -> tuple[URL, str]:
    """Read a database's URL: of PostgreSQL's, `?schema=NAME` is the schema that holds the tables, "" without it.

    Raises StateError, in `explained`, for one that is of neither kind, or a schema that has no such name.
    """
    place, schema = make_url(url), ""
    if place.get_backend_name() not in ("sqlite", "postgresql"):
        raise StateError("the database is neither SQLite nor PostgreSQL: give sqlite:///FILE or postgresql://…")
    if place.get_backend_name() == "postgresql" and "schema" in place.query:
        schema = str(place.query["schema"])
        if not _SCHEMA.fullmatch(schema):
            raise StateError("the database's schema has 1 to 63 letters, digits, '.', '_' or '-': correct the URL")
    return place.difference_update_query(["schema"] if schema else []), schema


def quoted(schema: str) -> str:
    """Return a schema's name as SQL, search paths and pg_dump's patterns have it."""
    return f'"{schema}"'


def connect(url: str) -> Engine:
    """Make the engine of a database; nothing is opened yet."""
    place, schema = place_of(url)
    if place.get_backend_name() == "sqlite":
        return _sqlite(place)
    options = {"options": f"-csearch_path={quoted(schema)}"} if schema else {}
    # The server may have been restarted since the last phase.
    return create_engine(place, pool_pre_ping=True, connect_args=options)


def make_schema(connection: Connection, url: str) -> None:
    """Make the schema that a database's URL names, unless it is there."""
    _, schema = place_of(url)
    if schema:
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}")


def _sqlite(place: URL) -> Engine:
    """Make an engine whose transactions are SQLite's own: the driver would begin them late, and never for a table."""
    if "timeout" not in place.query:
        place = place.update_query_dict({"timeout": str(LOCKED_SECONDS)})
    engine = create_engine(place)

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # whoever reads first and writes then must not lose its turn

    return engine


def require_answer(url: str) -> None:
    """Raise StateError unless the database can be reached; nothing is made or changed in it."""
    with explained("the state database does not answer"), connect(url).connect() as connection:
        connection.execute(select(1))


@contextmanager
def exclusive(engine: Engine) -> Iterator[Connection]:
    """Give a transaction that begins when no other one of its kind is open, in whatever process."""
    with engine.begin() as connection:  # SQLite has one at a time of any kind
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(OPENING)))
        yield connection
