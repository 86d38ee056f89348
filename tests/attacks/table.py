"""Read the table of promises in docs/privacy.md."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEADING = "## Promises and the tests that attack them"


def promises() -> list[tuple[str, list[str], list[str]]]:
    """Return promise, modules and tests (`path` or `path::name`) of each row."""
    part = (ROOT / "docs" / "privacy.md").read_text().partition(f"\n{HEADING}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")][1:]
    return [(promise, *(re.findall(r"`([^`]+)`", cell) for cell in cells)) for promise, *cells in rows]
