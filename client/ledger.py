"""Keep the phone's own privacy ledger: what it answered, what that cost, and when it declines.

An answer is charged and stored in one transaction before it is sent, so neither a kill nor a server that asks again
draws a second noise for one charge. Of the owner's classes it holds nothing beyond the answers, noise included.
"""

import hashlib
import math
import re
import sqlite3
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedcaptor.client.storage import OnPhoneFile, PhoneFile
from fedcaptor.common.errors import ConfigError, PrivacyError
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.privacy.zcdp import PERIOD_DAYS, sum_zcdp, to_epsilon

PURE = "pure"  # stands for the spec of an answer that is private by itself, at δ = 0
DECLINED = "declined"  # all that a message may say of a PrivacyError raised here
MAX_ANSWERS = 64
MAX_ANSWER_BYTES = 1 << 28
MAX_CHARGES = 4096  # in one period, however small
KEPT_CHARGES = 1024  # charges out of the period that stay, should the clock have jumped ahead
_DAY_SECONDS = 86_400.0
_ROUNDING = 1e-9  # relative, of a budget calibrated to be met exactly
_DIGEST = re.compile(r"[0-9a-f]{32,64}")

T = TypeVar("T")

_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS ledger_charges (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    request TEXT NOT NULL,
    spec TEXT NOT NULL,
    kind TEXT NOT NULL,
    rho REAL NOT NULL CHECK (rho > 0),
    checksum INTEGER NOT NULL
)
""",
    """
CREATE TABLE IF NOT EXISTS ledger_answers (
    charge INTEGER PRIMARY KEY,
    answer BLOB NOT NULL,
    checksum TEXT NOT NULL
)
""",
    "CREATE TABLE IF NOT EXISTS ledger_off (id INTEGER PRIMARY KEY CHECK (id = 1))",
    "CREATE TABLE IF NOT EXISTS ledger_named (request TEXT NOT NULL UNIQUE, at REAL NOT NULL, cluster INTEGER)",
)
_KEPT_ON_ERASE = {"ledger_charges", "ledger_off", "ledger_named", "ledger_issued", "ledger_manifest"}


@dataclass(frozen=True)
class Charge:
    """Record one answer's price: `at` in seconds since the epoch, `rho` in zCDP; `answered` while the answer is kept.

    `pure`: the price is √(2ρ) in ε at δ = 0, which is ρ in zCDP (Bun and Steinke 2016, proposition 1.4), but less ε.
    """

    at: float
    request: str
    kind: str
    rho: float
    answered: bool
    pure: bool = False


@lru_cache(maxsize=4096)
def _epsilon(rho: float, delta: float) -> float:
    return to_epsilon([rho] if rho else [], delta)


def _checksum(at: float, request: str, spec: str, kind: str, rho: float) -> int:
    return zlib.crc32(repr((at, request, spec, kind, rho)).encode())


class Ledger(OnPhoneFile):
    """Keep charges and answers of one phone in `path` (the usage log may share the file).

    Answers are given while ε at `delta` over the last `period_days`, the new answer included, is at most
    `budget_epsilon` (infinite switches the limit off). The price of a sum is that of `min_survivors` replies of which
    a fraction `dishonest` of the cohort adds no noise. `clock` is in seconds since the epoch. Raises ConfigError on a
    bad argument and StateError when the file is damaged or cannot be used.
    """

    SCHEMA: tuple[str, ...] = _SCHEMA

    def __init__(
        self,
        path: str | Path,
        *,
        durable: bool = True,
        clock: Callable[[], float] = time.time,
        delta: float,
        budget_epsilon: float,
        period_days: int = PERIOD_DAYS,
        dishonest: float = 0.0,
    ) -> None:
        if not 0 < delta < 1:
            raise ConfigError(f"delta {delta} is outside 0 to 1 (both excluded); set it below 1 / number of phones")
        if not budget_epsilon > 0:
            raise ConfigError(f"budget_epsilon {budget_epsilon} must be above 0; raise it")
        if period_days < 1:
            raise ConfigError(f"period_days {period_days} is below 1; raise it")
        if not 0 <= dishonest < 1:
            raise ConfigError(f"dishonest fraction {dishonest} is outside 0 to 1 (excluded); change it")
        self._clock = clock
        self._delta = delta
        self._budget = budget_epsilon
        self._period = period_days * _DAY_SECONDS
        self._dishonest = dishonest
        self._file = PhoneFile(path, self.SCHEMA, durable)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        with self._file.transaction(write=False) as connection:
            self._charges(connection)
            oldest = connection.execute(
                "SELECT min(at) FROM ledger_answers JOIN ledger_charges ON charge = id"
            ).fetchone()[0]
        if oldest is not None and oldest <= self._clock() - self._period:
            with self._file.transaction() as connection:
                self._trim(connection)

    def answer(
        self, spec: SumSpec, request_digest: str, compute: Callable[[], NDArray[np.uint32]], kind: str | None = None
    ) -> NDArray[np.uint32]:
        """Return the reply to a request, uint32 [length]; it is charged and on the disk before this returns.

        `compute` encodes it, noise included; it runs outside the transaction, and a result that was not stored is
        dropped. A repeated `request_digest` (32 to 64 hex digits) with an equal `spec` gets the stored values for no
        charge while the answer is kept: within the period, the newest 64 and 256 MiB, not erased. Afterwards it is
        a new request with new noise and a new charge. `kind` (default: the sum's name) is shown to the owner.
        Raises PrivacyError when the phone is off, the budget does not allow it or the result breaks the spec; send
        `DECLINED` alone, the text is for the owner. What `compute` raises passes through, and nothing is charged.
        """
        if not _DIGEST.fullmatch(request_digest):
            raise PrivacyError(f"{DECLINED}: the request digest is not 32 to 64 hex digits; pass its SHA-256")
        kind = spec.name if kind is None else kind

        def kept(connection: sqlite3.Connection) -> bytes | None:
            blob = self._kept(connection, spec, request_digest)
            if blob is None:
                self._price(connection, spec, kind)
            return blob

        def keep(connection: sqlite3.Connection, blob: bytes) -> None:
            rho = sum_zcdp(spec, self._dishonest)  # there is room for it: `kept` looked
            self._keep_answer(connection, self._insert(connection, request_digest, spec.digest, kind, rho), blob)

        blob = self._once(kept, lambda: _packed(spec, compute()), keep)
        return np.frombuffer(blob, "<u4").astype(np.uint32)

    def spent(self) -> float:
        """Return the ε at `delta` of all charges in the period that ends now; 0 for none."""
        with self._file.transaction(write=False) as connection:
            return self._epsilon(self._counted(connection))

    def spent_server(self) -> float:
        """Return the same ε towards a server that cheats, at most: it can get sums of fewer phones, but of more than
        half of the honest ones (`topology.fewest_honest`), so that twice the zCDP holds for each sum.
        """
        with self._file.transaction(write=False) as connection:
            charges = self._counted(connection)
        return self._epsilon(charges, math.fsum(charge.rho for charge in charges if not charge.pure))

    def entries(self) -> list[Charge]:
        """List all charges still kept, oldest first; those out of the period no longer count."""
        with self._file.transaction(write=False) as connection:
            return self._charges(connection)

    def times_named(self) -> int:
        """Return how often a cluster was named in the period that ends now."""
        with self._file.transaction(write=False) as connection:
            return self._times_named(connection)

    def off(self) -> None:
        """Decline every request from now on, also one answered before."""
        with self._file.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO ledger_off VALUES (1)")

    def on(self) -> None:
        """Answer again, within the budget."""
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM ledger_off")

    @property
    def is_off(self) -> bool:
        """Tell whether the owner switched answers off."""
        with self._file.transaction(write=False) as connection:
            return self._off(connection)

    def require_on(self) -> None:
        """Raise PrivacyError when the owner switched answers off."""
        with self._file.transaction(write=False) as connection:
            self._require_on(connection)

    def erase(self) -> None:
        """Empty every table of the file, a usage log's too, except charges and the switch: erasing refunds nothing.

        For this reason it stays known how often a cluster was named, but not which one, and which signed delivery and
        manifest were the newest.
        """
        with self._file.transaction() as connection:
            connection.execute("UPDATE ledger_named SET cluster = NULL")
            tables = connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
            ).fetchall()
            for (name,) in tables:
                if name not in _KEPT_ON_ERASE:
                    quoted = name.replace('"', '""')
                    connection.execute(f'DELETE FROM "{quoted}"')

    def _once(
        self,
        kept: Callable[[sqlite3.Connection], T | None],
        compute: Callable[[], T],
        keep: Callable[[sqlite3.Connection, T], None],
    ) -> T:
        """Return what is `kept`, else what `compute` gives once `keep` has stored it.

        `compute` runs outside the transaction. `kept` is asked before and after it, and raises PrivacyError where no
        further answer is allowed.
        """
        with self._file.transaction(write=False) as connection:
            found = kept(connection)
        if found is not None:
            return found
        fresh = compute()
        with self._file.transaction() as connection:
            found = kept(connection)
            if found is not None:  # stored meanwhile by another thread: that one counts
                return found
            keep(connection, fresh)
        return fresh

    def _keep_answer(self, connection: sqlite3.Connection, charge: int | None, blob: bytes) -> None:
        row = (charge, blob, hashlib.sha256(blob).hexdigest())
        connection.execute("INSERT INTO ledger_answers VALUES (?, ?, ?)", row)
        self._trim(connection)

    def _charge(self, connection: sqlite3.Connection, spec: SumSpec, request: str, kind: str) -> int | None:
        """Store a new charge and return its number. Raises PrivacyError when it does not fit in the budget."""
        return self._insert(connection, request, spec.digest, kind, self._price(connection, spec, kind))

    def _insert(self, connection: sqlite3.Connection, request: str, spec: str, kind: str, rho: float) -> int | None:
        row = (float(self._clock()), request, spec, kind, rho)
        return connection.execute(
            "INSERT INTO ledger_charges (at, request, spec, kind, rho, checksum) VALUES (?, ?, ?, ?, ?, ?)",
            (*row, _checksum(*row)),
        ).lastrowid

    def _kept(self, connection: sqlite3.Connection, spec: SumSpec, request: str) -> bytes | None:
        self._require_on(connection)
        found = connection.execute(
            "SELECT answer, a.checksum FROM ledger_answers a JOIN ledger_charges ON charge = id "
            "WHERE request = ? AND spec = ? ORDER BY id DESC LIMIT 1",
            (request, spec.digest),
        ).fetchone()
        return None if found is None else self._checked(*found)

    def _checked(self, blob: object, checksum: str) -> bytes:
        if not isinstance(blob, bytes) or hashlib.sha256(blob).hexdigest() != checksum:
            raise self._file.damaged("the checksum of a stored answer differs")
        return blob

    def _price(self, connection: sqlite3.Connection, spec: SumSpec, kind: str) -> float:
        """Return the rho of one answer. Raises PrivacyError when it does not fit in the budget."""
        rho = sum_zcdp(spec, self._dishonest)
        self._require_room(connection, kind, rho=rho)
        return rho

    def _require_room(
        self, connection: sqlite3.Connection, kind: str, *, rho: float = 0.0, epsilon: float = 0.0
    ) -> None:
        """Raise PrivacyError when an answer of that zCDP, or of that ε at δ = 0, does not fit in the budget."""
        charges = self._counted(connection)
        if len(charges) >= MAX_CHARGES:
            raise PrivacyError(f"{DECLINED}: {len(charges)} answers in the period, the bound is {MAX_CHARGES}; wait")
        after = self._epsilon(charges, rho) + epsilon
        if after > self._budget * (1 + _ROUNDING):
            raise PrivacyError(
                f"{DECLINED}: {kind} would raise epsilon from {self._epsilon(charges):.4g} to {after:.4g} at "
                f"delta {self._delta:g}, the budget is {self._budget:g} in {self._period / _DAY_SECONDS:g} days; "
                "wait until older answers leave the period or raise the budget"
            )

    def _epsilon(self, charges: list[Charge], rho: float = 0.0) -> float:
        """Compose the ε of the sums, `rho` more among them, and add that of the pure answers (basic composition)."""
        sums = math.fsum([rho, *(charge.rho for charge in charges if not charge.pure)])
        return _epsilon(sums, self._delta) + math.fsum(math.sqrt(2 * charge.rho) for charge in charges if charge.pure)

    def _require_on(self, connection: sqlite3.Connection) -> None:
        if self._off(connection):
            raise PrivacyError(f"{DECLINED}: answers are switched off on this phone; switch them on")

    def _off(self, connection: sqlite3.Connection) -> bool:
        return connection.execute("SELECT 1 FROM ledger_off").fetchone() is not None

    def _counted(self, connection: sqlite3.Connection) -> list[Charge]:
        start = self._clock() - self._period  # charges ahead of a clock that was set back count too
        return [charge for charge in self._charges(connection) if charge.at > start]

    def _times_named(self, connection: sqlite3.Connection) -> int:
        start = self._clock() - self._period
        return int(connection.execute("SELECT count(*) FROM ledger_named WHERE at > ?", (start,)).fetchone()[0])

    def _charges(self, connection: sqlite3.Connection) -> list[Charge]:
        charges = []
        for at, request, spec, kind, rho, checksum, answered in connection.execute(
            "SELECT at, request, spec, kind, rho, c.checksum, charge IS NOT NULL FROM ledger_charges c "
            "LEFT JOIN ledger_answers ON charge = id ORDER BY id"
        ):
            if _checksum(at, request, spec, kind, rho) != checksum:
                raise self._file.damaged("the checksum of a charge differs")
            charges.append(Charge(at, request, kind, rho, bool(answered), spec == PURE))
        return charges

    def _trim(self, connection: sqlite3.Connection) -> None:
        start = self._clock() - self._period
        connection.execute(
            "DELETE FROM ledger_answers WHERE charge IN (SELECT id FROM ledger_charges WHERE at <= ?)", (start,)
        )
        kept = connection.execute("SELECT charge, length(answer) FROM ledger_answers ORDER BY charge DESC").fetchall()
        size = 0
        for place, (charge, length) in enumerate(kept):
            size += length
            if place >= MAX_ANSWERS or (place and size > MAX_ANSWER_BYTES):
                connection.execute("DELETE FROM ledger_answers WHERE charge = ?", (charge,))
        connection.execute(
            "DELETE FROM ledger_charges WHERE at <= ? AND id <= (SELECT max(id) FROM ledger_charges) - ?",
            (start, KEPT_CHARGES),
        )


def _packed(spec: SumSpec, values: NDArray[np.uint32]) -> bytes:
    if values.dtype != np.uint32 or values.shape != (spec.length,):
        raise PrivacyError(
            f"{DECLINED}: the reply is {values.dtype} {values.shape}, expected uint32 ({spec.length},); encode it anew"
        )
    if int(values.max()) >= 2**spec.bits:
        raise PrivacyError(f"{DECLINED}: the reply holds {int(values.max())}, the bound is 2**{spec.bits} - 1")
    return values.astype("<u4").tobytes()
