"""What a run does at this moment, for monitoring: the run writes it, the heartbeat reads it from another thread."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Moment:
    """Describe the phase in progress. `phase` is its name in the round, "" between phases.

    `step`: what phones are asked, "" where none is; `asked`, `replied`: phones of that step; `online`: phones that the
    SuperLink knew when the sum began, None before. `started` and `deadline`: unix seconds; None: no deadline.
    """

    round: int = 0
    phase: str = ""
    started: float = 0.0
    step: str = ""
    asked: int = 0
    replied: int = 0
    online: int | None = None
    deadline: float | None = None

    @property
    def name(self) -> str:
        """Name what phones are asked: the phase, and the step of a sum, as in "usage-0 keys"."""
        return self.phase if self.phase.startswith(self.step) else f"{self.phase} {self.step}"


class Activity:
    """Hold the moment, replaced at once: a reader in another thread sees a whole one."""

    def __init__(self) -> None:
        self.now = Moment(started=time.time())

    def begin(self, round: int, phase: str) -> None:
        """Note that a phase of a round begins."""
        self.now = Moment(round, phase, time.time(), online=self.now.online)

    def ask(self, step: str, asked: int, online: int, seconds: float) -> None:
        """Note that so many phones are asked, and waited for at most so many seconds."""
        self.now = replace(self.now, step=step, asked=asked, replied=0, online=online, deadline=time.time() + seconds)

    def reply(self, replied: int) -> None:
        """Note that so many phones have answered the step."""
        self.now = replace(self.now, replied=replied)
