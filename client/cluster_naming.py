"""Count how often a phone names its cluster, which no ε covers, and limit it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from fedcaptor.client.ledger import DECLINED, KEPT_CHARGES, Ledger
from fedcaptor.common.errors import PrivacyError


class NamingLedger(Ledger):
    """Extend the ledger by the clusters that a phone named to fetch their submodels."""

    def named(self, request: str, most: int, choose: Callable[[], int]) -> int:
        """Return the cluster named to this request, that of `choose` if there is none yet; it is on the disk by then.

        Raises PrivacyError when the phone is off, when it named a cluster to `most` other requests in the period, or
        when what it named to this one is erased.
        """

        def keep(connection: sqlite3.Connection, cluster: int) -> None:
            connection.execute("INSERT INTO ledger_named VALUES (?, ?, ?)", (request, float(self._clock()), cluster))
            connection.execute(
                "DELETE FROM ledger_named WHERE at <= ? AND rowid <= (SELECT max(rowid) FROM ledger_named) - ?",
                (self._clock() - self._period, KEPT_CHARGES),
            )

        return self._once(lambda connection: self._named(connection, request, most), choose, keep)

    def _named(self, connection: sqlite3.Connection, request: str, most: int) -> int | None:
        self._require_on(connection)
        found = connection.execute("SELECT cluster FROM ledger_named WHERE request = ?", (request,)).fetchone()
        if found is not None and found[0] is None:
            raise PrivacyError(f"{DECLINED}: the cluster named to this request is erased; wait for another request")
        if found is not None:
            return int(found[0])
        count = self._times_named(connection)
        if count >= most:
            raise PrivacyError(f"{DECLINED}: a cluster was named {count} times in the period, {most} at most; wait")
        return None
