"""Progress of long work as lines of text, for logs and wherever there is no terminal that could show bars."""

from __future__ import annotations

import time
from collections.abc import Callable

OnProgress = Callable[[str, int, int], None]
"""Is told what is done, how many parts of it are finished, and of how many."""

SECONDS = 10.0


def lines(say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> OnProgress:
    """Return a function that says a line at the start of each kind of work, and every ten seconds of it.

    `clock` gives seconds.
    """
    current, said = "", 0.0

    def on_progress(what: str, done: int, total: int) -> None:
        nonlocal current, said
        if what != current or clock() - said > SECONDS:
            current, said = what, clock()
            say(f"{what}: {done} of {total} ({100 * done // max(total, 1)} %)")

    return on_progress
