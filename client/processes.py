"""Other processes of a phone: the owner's condition for checking in, and a child that is to end."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

_CONDITION_SECONDS = 30
_MOST_SAID = 200


def holds(condition: str) -> bool:
    """Run `device.condition`: it holds where the command exits with 0, or is empty."""
    return refusal(condition) is None


def refusal(condition: str) -> str | None:
    """Run `device.condition` and return why it does not hold, by the command's last line; None where it holds."""
    if not condition:
        return None
    try:
        done = subprocess.run(condition, shell=True, capture_output=True, timeout=_CONDITION_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"it takes more than {_CONDITION_SECONDS} seconds: shorten it"
    if done.returncode == 0:
        return None
    said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return said[-1][:_MOST_SAID] if said else f"its exit status is {done.returncode}"


def end_child(number: int) -> None:
    """End a child of this process and wait for it; do nothing where the number is 0, or of no child."""
    with suppress(ChildProcessError):
        if number and os.waitpid(number, os.WNOHANG) == (0, 0):
            os.kill(number, signal.SIGTERM)
            os.waitpid(number, 0)
