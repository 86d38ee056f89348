"""Refuse signed deliveries that are older than one which the phone knows: a rollback."""

from __future__ import annotations

from fedcaptor.client.ledger import Ledger
from fedcaptor.common.errors import WireError

_TABLE = """
CREATE TABLE IF NOT EXISTS ledger_issued (
    mode TEXT PRIMARY KEY,
    issued INTEGER NOT NULL,
    digest TEXT NOT NULL
)
"""


class IssueLedger(Ledger):
    """Extend the ledger by the newest signed delivery of each mode; erasing keeps it."""

    SCHEMA = (*Ledger.SCHEMA, _TABLE)

    def require_newest(self, mode: str, issued: int, digest: str) -> None:
        """Keep the number of a verified delivery; it is on the disk when this returns.

        Raises WireError where a delivery with a larger number was verified before, or, of the same mode, another one
        with the same number. Only a repeat may share it.
        """
        with self._file.transaction() as connection:
            newest = connection.execute("SELECT max(issued) FROM ledger_issued").fetchone()[0]
            if newest is not None and issued < newest:
                raise WireError("replayed", f"the delivery was issued as {issued}, after one issued as {newest} came")
            row = connection.execute("SELECT issued, digest FROM ledger_issued WHERE mode = ?", (mode,)).fetchone()
            if row is not None and row[0] == issued and row[1] != digest:
                raise WireError("replayed", f"another delivery was issued as {issued} already")
            connection.execute("INSERT OR REPLACE INTO ledger_issued VALUES (?, ?, ?)", (mode, issued, digest))
