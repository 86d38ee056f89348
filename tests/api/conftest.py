from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from tests import tiny


@pytest.fixture(scope="session")
def network(bars: tuple[Path, Path]) -> nn.Module:
    """A trained network in memory, which knows bars on 12 × 12 pixels: see `tests.tiny`."""
    return tiny.base_model(bars[1]).module


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread: None) -> None:
    pass
