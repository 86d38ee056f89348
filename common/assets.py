"""Files that belong to the code but are no code: Flower's app bundle carries only text, so they may lie elsewhere."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

_ROOT = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """The folder of an editable installation, None for any other."""
    for found in metadata.distributions(name="fedcaptor"):  # the build's own metadata in a working folder comes first
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            return Path(unquote(urlsplit(origin["url"]).path))
    return None


def asset(relative: str) -> Path:
    """A file or folder by its path from the project's root: beside this code, in the checkout or where it is installed.

    Beside this code if it is nowhere: who opens it names it in the error.
    """
    beside = _ROOT / relative
    root = checkout() if not beside.exists() else None
    installed = [Path(str(d.locate_file(relative))) for d in metadata.distributions(name="fedcaptor")]
    places = [beside, *([root / relative] if root else []), *installed]
    return next((place for place in places if place.exists()), beside)
