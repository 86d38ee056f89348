"""The page's section on the catalogue of signed files."""

from __future__ import annotations

from benchmarks.pages.section import Section, section
from benchmarks.record import Record


def render(record: Record) -> Section:
    """Fill the section: servers beside nginx, then updates."""
    servers = [row for row in record.rows if "server" in row]
    updates = [row for row in record.rows if "update" in row]
    return section("catalogue", record, servers=servers, updates=updates)
