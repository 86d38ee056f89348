"""What several tests of a phone share."""

from __future__ import annotations

import pytest


class Clock:
    now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()
