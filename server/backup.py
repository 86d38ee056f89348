"""Copy the database of a deployment that runs, and make a new one of a copy: SQLite's by itself, PostgreSQL's by its
own programs `pg_dump` and `pg_restore`.

A copy is of one moment. It serves for any SQLite database, the one of Flower's SuperLink too.
"""

from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
import subprocess
import zlib
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from sqlalchemy import URL, inspect

from fedcaptor.common.errors import StateError
from fedcaptor.common.files import replacing
from fedcaptor.server.database import LOCKED_SECONDS, connect, explained, place_of, quoted


def backup(url: str, file: Path) -> None:
    """Copy the database to `file`, which is replaced whole, for its owner's eyes alone. Raises StateError."""
    with explained("the database cannot be copied", "the database, and the folder of the copy"):
        place, schema = place_of(url)
        with replacing(file, private=True, durable=True) as temporary:
            if place.get_backend_name() == "sqlite":
                _copy(_existing(Path(place.database or "")), temporary)
            else:
                _dump(place, schema, temporary)


def restore(url: str, file: Path) -> None:
    """Make the database of a copy. Raises StateError where one is there already, or the copy is damaged.

    SQLite: there must be no file. PostgreSQL: the database must be there and empty, or lack the schema of the URL.
    """
    with explained("the copy cannot be restored", "the copy, and the folder of the database"):
        place, _ = place_of(url)
        if place.get_backend_name() == "sqlite":
            database = Path(place.database or "")
            for there in (database, *(database.with_name(f"{database.name}-{end}") for end in ("journal", "wal"))):
                if there.exists():
                    raise StateError(f"{there} exists: stop what uses it and move it away, or name another file")
            with replacing(database, private=True, durable=True) as temporary:
                _copy(_existing(file), temporary)
        else:
            _undump(place, _existing(file))
            if not holds_run(url):
                raise StateError("the copy is of another schema than the URL's: give the name that it was made with")


def holds_run(url: str) -> bool:
    """Tell whether a run has begun to use the database; nothing is made or changed. Raises StateError."""
    with explained("the database does not answer"):
        place, _ = place_of(url)
        if place.get_backend_name() == "sqlite" and not Path(place.database or "").is_file():
            return False
        with connect(url).connect() as connection:
            return inspect(connection).has_table("run")


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise StateError(f"{file} does not exist: correct the path")
    return file


def _copy(source: Path, target: Path) -> None:
    """Copy a SQLite database while other processes use it, and check the copy.

    Writers wait until it is done, but for those of a database with a write-ahead log, as Flower's is.
    """
    with (
        closing(sqlite3.connect(source, LOCKED_SECONDS, isolation_level=None)) as database,
        closing(sqlite3.connect(target)) as copy,
    ):
        database.execute("BEGIN")
        database.execute("SELECT 1 FROM sqlite_master").fetchone()  # locks it; `backup` would wait for that for ever
        database.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # all of it is in one file
        if (found := copy.execute("PRAGMA integrity_check(1)").fetchone()[0]) != "ok":
            raise StateError(f"{source} is damaged ({found}): restore a backup")


def _dump(place: URL, schema: str, target: Path) -> None:
    """Write what `pg_dump` prints, compressed: its own format would not show damage, gzip's has a checksum."""
    command = [_program("pg_dump"), "--format=custom", "--compress=0", "--no-owner", "--no-privileges"]
    command += ["--schema", quoted(schema)] if schema else []
    with gzip.open(target, "wb", compresslevel=1) as copy, TemporaryFile() as said:
        with subprocess.Popen(command, env=_environment(place), stdout=subprocess.PIPE, stderr=said) as process:
            assert process.stdout is not None
            shutil.copyfileobj(process.stdout, copy)
        _check(command[0], process.returncode, said)


def _undump(place: URL, source: Path) -> None:
    command = [_program("pg_restore"), "--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction"]
    with TemporaryFile() as dump, TemporaryFile() as said:
        try:
            with gzip.open(source) as copy:
                shutil.copyfileobj(copy, dump)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise StateError(f"{source} is damaged ({error}): restore another copy") from None
        dump.seek(0)
        to = f"--dbname={place.database}"
        done = subprocess.run([*command, to], env=_environment(place), stdin=dump, stdout=said, stderr=said)
        _check(command[0], done.returncode, said)


def _program(name: str) -> str:
    if shutil.which(name) is None:
        raise StateError(f"{name} is not installed: install PostgreSQL's client programs (postgresql-client)")
    return name


def _environment(place: URL) -> dict[str, str]:
    """Give the URL's parts to one of PostgreSQL's programs where other users cannot read them, as its arguments."""
    given = {
        "PGHOST": place.host or place.query.get("host"),
        "PGPORT": place.port,
        "PGUSER": place.username,
        "PGPASSWORD": place.password,
        "PGDATABASE": place.database,
        **{f"PG{name.upper()}": place.query.get(name) for name in ("sslmode", "sslrootcert", "sslcert", "sslkey")},
    }
    return {**os.environ, **{name: str(value) for name, value in given.items() if value is not None}}


def _check(program: str, code: int, output: IO[bytes]) -> None:
    """Raise StateError where a program failed, with its first error; it is never given a password to print."""
    if code:
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
        said = next((line for line in lines if "error" in line), "without a reason")
        raise StateError(f"{program} failed ({said}): check that the database is there, and empty before a restore")
