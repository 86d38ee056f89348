"""Find files that belong to the code but are no code: scenarios, weights, templates."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

_ROOT = Path(__file__).resolve().parents[1]
"""The project's root in a checkout (links resolved), the package's folder where it is installed."""


def checkout() -> Path | None:
    """Find the folder of an editable installation; None for any other."""
    for found in metadata.distributions(name="fedcaptor"):  # the build's own metadata in a working folder comes first
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            return Path(unquote(urlsplit(origin["url"]).path))
    return None


def asset(relative: str) -> Path:
    """Locate a file or folder of the code by its path from the project's root."""
    return _ROOT / relative
