"""Keep the one local answer of a phone: drawn once a period, stored and charged before it is sent.

When it is asked for again, in another run too, the stored answer is sent, which reveals nothing more. The owner's
habits may change, but a new answer would be a new charge, so there is none before the period is over.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from fedcaptor.client.ledger import DECLINED, PURE, Ledger
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.local import Bits, LocalSpec

KIND = "local"  # as the owner reads it


class LocalLedger(Ledger):
    """Extend the ledger by the local answer."""

    def local(self, spec: LocalSpec, draw: Callable[[], Bits]) -> bytes:
        """Return the period's answer, that of `draw` if there is none yet; by then it is on the disk with its charge.

        Raises PrivacyError when the phone is off, the budget does not allow it, another question was answered in the
        period, or the answer is erased: any of these would be a second one.
        """

        def kept(connection: sqlite3.Connection) -> bytes | None:
            answer = self._memo(connection, spec)
            if answer is None:
                self._require_room(connection, KIND, epsilon=spec.epsilon)
            return answer

        def keep(connection: sqlite3.Connection, answer: bytes) -> None:
            charge = self._insert(connection, spec.digest, PURE, KIND, spec.epsilon**2 / 2)
            self._keep_answer(connection, charge, answer)

        return self._once(kept, lambda: draw().tobytes(), keep)

    def _memo(self, connection: sqlite3.Connection, spec: LocalSpec) -> bytes | None:
        self._require_on(connection)
        found = connection.execute(
            "SELECT request, answer, a.checksum FROM ledger_charges c LEFT JOIN ledger_answers a ON charge = id "
            "WHERE spec = ? AND at > ? ORDER BY id DESC LIMIT 1",
            (PURE, self._clock() - self._period),
        ).fetchone()
        if found is None:
            return None
        request, answer, checksum = found
        if request != spec.digest:
            raise PrivacyError(f"{DECLINED}: another local question was answered in this period; wait for its end")
        if answer is None:
            raise PrivacyError(f"{DECLINED}: the period's answer is erased, a new one would be charged again; wait")
        return self._checked(answer, checksum)
