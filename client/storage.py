"""Keep a phone's state in one SQLite file, which usage log and ledger share."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from fedcaptor.common.errors import StateError

_WAIT_SECONDS = 10.0
_CHECKED_BYTES = 4 << 20  # larger files are not checked whole on opening


class PhoneFile:
    """Open one SQLite file with the phone's state, for its owner's eyes alone (mode 0600, erased rows overwritten).

    A transaction is whole or absent after a kill at any moment; with `durable` after a power cut too (off in
    simulations). `schema` is one statement each. Errors of the file are StateError with its name and the remedy.
    """

    def __init__(self, path: str | Path, schema: tuple[str, ...], durable: bool) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        try:  # only when it is new: opening and closing an existing one would drop SQLite's locks on it
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise self._unusable(error) from error
        with self._errors():
            self._connection = sqlite3.connect(
                self.path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            self._prepare(schema, durable)
        except BaseException:
            self.close()
            raise

    def _prepare(self, schema: tuple[str, ...], durable: bool) -> None:
        with self._errors():
            run = self._connection.execute
            run(f"PRAGMA synchronous = {'EXTRA' if durable else 'OFF'}")
            run("PRAGMA secure_delete = ON")
            pages, size = run("PRAGMA page_count").fetchone()[0], run("PRAGMA page_size").fetchone()[0]
            if pages * size <= _CHECKED_BYTES:
                found = run("PRAGMA quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise self.damaged(" ".join(str(found).split()))
            for statement in schema:
                run(statement)

    @contextmanager
    def transaction(self, write: bool = True) -> Iterator[sqlite3.Connection]:
        """Commit all that is executed inside, or nothing; with `durable` it is on the disk when this returns."""
        with self._lock, self._errors():
            self._connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def damaged(self, detail: str) -> StateError:
        """Make the error for content that breaks a rule of the file."""
        return StateError(
            f"{self.path} is damaged ({detail}); restore a backup, or move it away to start empty and, because the "
            "privacy charges in it are lost, stay out of sums for one budget period"
        )

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
            raise self._unusable(error) from error
        except sqlite3.Error as error:
            raise self.damaged(str(error)) from error

    def _unusable(self, error: Exception) -> StateError:
        return StateError(
            f"{self.path} cannot be used ({error}); check that its folder exists, may be written and has free space, "
            "and that no other program holds the file"
        )


class OnPhoneFile:
    """Base of what is kept in `_file`: a context manager that closes it."""

    _file: PhoneFile

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
