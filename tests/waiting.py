"""Wait for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(holds: Callable[[], object], seconds: float) -> bool:
    """Look until something holds, for at most so many seconds; tells whether it does."""
    end = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.1)
    return bool(found)
