"""Refuse signed deliveries and manifests that are older than one which the phone knows: a rollback."""

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
_MANIFEST = "CREATE TABLE IF NOT EXISTS ledger_manifest (serial INTEGER NOT NULL, digest TEXT NOT NULL)"


class IssueLedger(Ledger):
    """Extend the ledger by the newest signed delivery of each mode and the newest manifest; erasing keeps them."""

    SCHEMA = (*Ledger.SCHEMA, _TABLE, _MANIFEST)

    def require_newest_manifest(self, serial: int, digest: str) -> None:
        """Keep the serial number of the catalogue's verified manifest; it is on the disk when this returns.

        Raises WireError for one that is older, or another one of the same number.
        """
        with self._file.transaction() as connection:
            newest = connection.execute("SELECT serial, digest FROM ledger_manifest").fetchone()
            if newest is not None and (serial < newest[0] or (serial == newest[0] and digest != newest[1])):
                raise WireError("replayed", f"manifest {serial} came after manifest {newest[0]}, which it must follow")
            connection.execute("DELETE FROM ledger_manifest")
            connection.execute("INSERT INTO ledger_manifest VALUES (?, ?)", (serial, digest))

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
