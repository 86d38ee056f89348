"""Send replies at a fixed time, so that how long the work took tells nobody anything."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class ReplyTiming:
    """Time replies: `seconds` pass from a request to its reply; 0: it is sent as soon as all is done."""

    seconds: float = 0.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def reply(self, answer: Callable[[], T], rest: Callable[[], None] | None = None) -> T:
        """Return or raise what `answer` does, `seconds` after the call; later only if `answer` itself takes longer.

        `rest` is done in between and changes nothing of that: what it raises is logged, and when the time is over it is
        left running. The process may end in the middle of it. With 0 seconds it runs before the reply, and may raise.
        """
        due, done = self.clock() + self.seconds, True
        try:
            result = answer()
            if rest is not None:
                done = self._meanwhile(rest, due)
            return result
        finally:
            left = due - self.clock()
            if self.seconds and (left < 0 or not done):
                logger.warning("the work takes longer than delivery.answer_seconds = %g: raise it", self.seconds)
            if left > 0:
                self.sleep(left)

    def _meanwhile(self, rest: Callable[[], None], due: float) -> bool:
        """Run `rest` until it ends or `due` is reached. Returns whether it ended in time."""
        if not self.seconds:
            rest()
            return True
        thread = threading.Thread(target=_logged, args=(rest,), daemon=True)
        thread.start()
        thread.join(max(due - self.clock(), 0.0))
        return not thread.is_alive()


def _logged(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as error:
        logger.warning("done again with a later message: %r", error)
