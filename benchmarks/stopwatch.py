"""What phones compute, in CPU seconds of their own thread: the server's work and waiting do not count."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from flwr.app import Context, Message

App = Callable[[Message, Context], Message]


@dataclass(frozen=True, eq=False)
class Stopwatch:
    """Seconds of each message that phones answered, by message type."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def around(self, app: App) -> App:
        """Return the app, timed. Phones answer on several threads, each alone on its own."""

        def timed(message: Message, context: Context) -> Message:
            start = time.thread_time()
            reply = app(message, context)
            self.seconds[message.metadata.message_type].append(time.thread_time() - start)
            return reply

        return timed

    def each(self, message_type: str, phones: int) -> float:
        """Return the seconds that one of `phones` phones spent on all messages of this type."""
        return sum(self.seconds[message_type]) / phones
