"""The configuration in a run's folder, by which a later call tells whether it goes on with the same run."""

from __future__ import annotations

import json
from pathlib import Path

from fedcaptor.common.config import Config, parse
from fedcaptor.common.errors import StateError

CONFIG = "config.json"


def stored_config(directory: Path) -> Config:
    """Read the configuration that the run in a folder began with. Raises StateError where it is damaged."""
    path = directory / CONFIG
    try:
        return parse(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise StateError(
            f"{path} cannot be read ({type(error).__name__}): remove {directory} or choose another"
        ) from None
