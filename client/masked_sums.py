"""Keep masked sums in progress on a phone, between their steps, and charge each when its masked vector is sent.

Nothing of the vector leaves a phone before that step, so a sum that ends earlier costs nothing. What an answer depends
on is on the disk before it is sent: after a restart the phone goes on, and the same request gets the same bytes.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedcaptor.client.identity import identity
from fedcaptor.client.ledger import DECLINED, Ledger
from fedcaptor.client.secure_sum.phone_sum import PhoneSum
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.random_streams import stream_of_digest
from fedcaptor.common.secure.messages import MASKING
from fedcaptor.common.secure.terms import Terms

MAX_OPEN = 4
MAX_STARTS = 256
"""Sums in a period that a device begins without sending its vector, or declines for their price at the first step.

Each draws another graph of masks: so many draws leave a server 2**-32 of what it may find once with 2**-40.
"""
MAX_AGE_SECONDS = 7 * 86_400.0

_TABLE = """
CREATE TABLE IF NOT EXISTS masked_sums (
    digest TEXT PRIMARY KEY,
    at REAL NOT NULL,
    state BLOB NOT NULL,
    checksum TEXT NOT NULL
)
"""

_STARTS = """
CREATE TABLE IF NOT EXISTS masked_starts (
    digest TEXT PRIMARY KEY,
    at REAL NOT NULL,
    begun INTEGER NOT NULL
)
"""


@dataclass(frozen=True, eq=False)
class Side:
    """Name one phone in one sum. `seed`: None for the operating system's randomness, else a simulated step's seed.

    `enrolled`: tells whether an identity is on the operator's register; None: there is no register.
    """

    terms: Terms
    folder: Path
    seed: tuple[int, ...] | None = None
    enrolled: Callable[[bytes], bool] | None = None

    def resume(self, stored: bytes | None) -> PhoneSum:
        """Go on from what `to_bytes` gave, or start from the beginning."""
        if self.seed is None:
            return PhoneSum(self.terms, identity(self.folder), enrolled=self.enrolled, stored=stored)
        lasting = np.random.default_rng([*self.seed[:-1], *b"identity"]).bytes
        drawn = stream_of_digest(self.seed, self.terms.digest).bytes
        return PhoneSum(self.terms, identity(self.folder, lasting), drawn, self.enrolled, stored)


class MaskedLedger(Ledger):
    """Extend the ledger by the newest sums in progress: four, of a week at most. `erase` removes them too."""

    SCHEMA = (*Ledger.SCHEMA, _TABLE)

    def masked(self, digest: str) -> bool:
        """Tell whether this phone's vector is in the sum already."""
        with self._file.transaction(write=False) as connection:
            return self._charged(connection, digest)

    def require_next(self, spec: SumSpec, kind: str, side: Side) -> None:
        """Raise PrivacyError unless this sum's vector may be made now: on, in budget, and its turn in the sum."""
        with self._file.transaction(write=False) as connection:
            self._require_on(connection)
            self._price(connection, spec, kind)
            if side.resume(self._stored(connection, side.terms.digest)).answered != MASKING:
                raise PrivacyError(f"{DECLINED}: the vector is asked for before the steps that come first")

    def step(self, spec: SumSpec, kind: str, side: Side, answer: Callable[[PhoneSum], bytes]) -> bytes:
        """Return the reply of a step, stored with the next state before it is sent; charged if it holds the vector.

        Raises PrivacyError when the phone is off, when the budget does not allow the sum (at its first step already),
        when the state of a sum that was charged is gone, or when a device began too many sums in vain; what `answer`
        raises passes through. Then nothing changes, but that a sum that was begun counts.
        """
        digest, device = side.terms.digest, side.seed is None
        if device:
            self._start(digest)
        with self._file.transaction() as connection:
            self._require_on(connection)
            stored, charged = self._stored(connection, digest), self._charged(connection, digest)
            if stored is None and charged:
                raise PrivacyError(f"{DECLINED}: the vector was sent and the rest of the sum is erased; ask a new sum")
            if not charged:
                self._price(connection, spec, kind)
            phone_sum = side.resume(stored)
            reply = answer(phone_sum)
            if phone_sum.answered > MASKING and not charged:
                self._charge(connection, spec, digest, kind)
            if (state := phone_sum.to_bytes()) != stored:
                self._keep(connection, digest, state)
            if device and stored is None:
                connection.execute("UPDATE masked_starts SET begun = 1 WHERE digest = ?", (digest,))
        return reply

    def _start(self, digest: str) -> None:
        """Count a sum that a device is asked to begin: before it is answered, as one that is declined counts too."""
        with self._file.transaction() as connection:
            self._require_on(connection)
            if self._charged(connection, digest) or self._stored(connection, digest) is not None:
                return
            now = float(self._clock())
            connection.execute(_STARTS)
            connection.execute("DELETE FROM masked_starts WHERE at <= ?", (now - self._period,))
            (count,) = connection.execute(
                "SELECT count(*) FROM masked_starts "
                "WHERE digest != ? AND digest NOT IN (SELECT request FROM ledger_charges)",
                (digest,),
            ).fetchone()
            if count >= MAX_STARTS:
                raise PrivacyError(
                    f"{DECLINED}: {count} sums in the period were begun and not finished, the bound is {MAX_STARTS}; "
                    "wait"
                )
            known = connection.execute("SELECT begun FROM masked_starts WHERE digest = ?", (digest,)).fetchone()
            if known == (1,):
                raise PrivacyError(f"{DECLINED}: the sum was begun before and is gone; ask a new sum")
            connection.execute("INSERT OR IGNORE INTO masked_starts VALUES (?, ?, 0)", (digest, now))

    def _charged(self, connection: sqlite3.Connection, digest: str) -> bool:
        return connection.execute("SELECT 1 FROM ledger_charges WHERE request = ?", (digest,)).fetchone() is not None

    def _stored(self, connection: sqlite3.Connection, digest: str) -> bytes | None:
        found = connection.execute("SELECT state, checksum FROM masked_sums WHERE digest = ?", (digest,)).fetchone()
        if found is None:
            return None
        if not isinstance(found[0], bytes) or hashlib.sha256(found[0]).hexdigest() != found[1]:
            raise self._file.damaged("the checksum of a sum in progress differs")
        return found[0]

    def _keep(self, connection: sqlite3.Connection, digest: str, state: bytes) -> None:
        now = float(self._clock())
        row = (digest, now, state, hashlib.sha256(state).hexdigest())
        connection.execute("INSERT OR REPLACE INTO masked_sums VALUES (?, ?, ?, ?)", row)
        connection.execute("DELETE FROM masked_sums WHERE at <= ?", (now - MAX_AGE_SECONDS,))
        connection.execute(
            "DELETE FROM masked_sums WHERE digest NOT IN (SELECT digest FROM masked_sums ORDER BY at DESC LIMIT ?)",
            (MAX_OPEN,),
        )
