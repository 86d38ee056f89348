"""Programs of Debian that tests start, or say why they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedcaptor.deploy.programs import find


def program(name: str) -> Path:
    """The program of this name; the test is skipped where there is none."""
    found = find(name)
    if found is None:
        pytest.skip(f"{name} is not installed, and `make tools` has not unpacked it")
    return found
