"""Other processes of a phone: the owner's condition for checking in, and a child that is to end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from contextlib import suppress

logger = logging.getLogger(__name__)

_CONDITION_SECONDS = 30


def holds(condition: str) -> bool:
    """Run `device.condition`: it holds where the command exits with 0, or is empty."""
    if not condition:
        return True
    try:
        done = subprocess.run(condition, shell=True, capture_output=True, timeout=_CONDITION_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        logger.warning("device.condition takes more than %d seconds: shorten it", _CONDITION_SECONDS)
        return False
    return done.returncode == 0


def end_child(number: int) -> None:
    """End a child of this process and wait for it; do nothing where the number is 0, or of no child."""
    with suppress(ChildProcessError):
        if number and os.waitpid(number, os.WNOHANG) == (0, 0):
            os.kill(number, signal.SIGTERM)
            os.waitpid(number, 0)
