"""Send replies at a fixed time, so that how long the work took tells nobody anything."""

from __future__ import annotations

import logging
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
    sleep: Callable[[float], object] = time.sleep

    def reply(self, answer: Callable[[], T]) -> T:
        """Return or raise what `answer` does, `seconds` after the call; later only if `answer` itself takes longer."""
        due = self.clock() + self.seconds
        try:
            return answer()
        finally:
            left = due - self.clock()
            if self.seconds and left < 0:
                logger.warning("the work takes longer than delivery.answer_seconds = %g: raise it", self.seconds)
            if left > 0:
                self.sleep(left)

    @property
    def patience(self) -> float:
        """Return how many of the seconds an answer may wait for other work, so that it is in time itself."""
        return 0.75 * self.seconds
