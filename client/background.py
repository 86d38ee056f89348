"""Do a phone's own work outside its replies: look at the day's images, personalise with a pending delivery.

How long this takes depends on the owner's classes, so that no reply may wait for it. On a device it is done in a child
process of its own, `python -m fedcaptor.client.background`, one at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedcaptor.client.folder import WORK_LOCK, WORK_LOG
from fedcaptor.client.process_lock import acquire
from fedcaptor.client.processes import end_child

if TYPE_CHECKING:
    from fedcaptor.client.learner import Learner

_POLL_SECONDS = 0.1
_NICENESS = 19
LEAN = {
    "OPENBLAS_NUM_THREADS": "1",  # one core, as ONNX Runtime has
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),  # glibc raises it by itself, and then keeps most of what is freed
}


class Background(Protocol):
    """Start a phone's own work and wait for it; see `InPlace` and `InChildProcess`."""

    def prepare(self, kind: str) -> None:
        """Look at the day's images, before the vector of a sum of this kind is asked for."""

    def personalise(self) -> None:
        """Work on the pending delivery."""

    def wait(self, seconds: float) -> None:
        """Return once no work is under way, after `seconds` at the latest."""


@dataclass(frozen=True)
class InPlace:
    """Work in the same process before the reply, as simulated phones do: their vectors look at images themselves."""

    learner: Callable[[], Learner]

    def prepare(self, kind: str) -> None:
        """Do nothing: the vector does."""

    def personalise(self) -> None:
        self.learner().finish()

    def wait(self, seconds: float) -> None:
        """Return at once: nothing is under way."""


@dataclass
class InChildProcess:
    """Work in a child process that outlives this one; `node` is the node configuration from which it makes its phone.

    `due`: tells whether there is something to do before the vector of a sum of a kind, as starting a child is dear. The
    child inherits a lock of the operating system, which ends with it however it ends. `adopted`: number of a child that
    this process had before it rested (`fedcaptor.client.resting`), 0: none.
    """

    folder: Path
    node: Mapping[str, str]
    due: Callable[[str], bool]
    adopted: int = 0
    _child: subprocess.Popen[bytes] | None = None

    def prepare(self, kind: str) -> None:
        if self.due(kind):
            self._start(kind)

    def personalise(self) -> None:
        self._start("")

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (lock := acquire(self.folder / WORK_LOCK)) is None and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        if lock is not None:
            os.close(lock)

    @property
    def child(self) -> int:
        """Return the number of the child that was started last, which may have ended; 0 where there was none."""
        return self.adopted if self._child is None else self._child.pid

    def cancel(self) -> None:
        """End the child, if it works; what it has not finished is done another time."""
        if self._child is not None:
            self._child.terminate()
            self._child.wait()
        end_child(self.adopted)

    def _start(self, kind: str) -> None:
        lock = acquire(self.folder / WORK_LOCK)
        if lock is None:  # a child is at work: it looks for further work before it ends
            return
        with open(self.folder / WORK_LOG, "wb", opener=_private) as log:
            child = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                env=LEAN | os.environ,
                start_new_session=True,
            )
        os.close(lock)
        self._child = child
        assert child.stdin is not None
        with child.stdin as settings:
            settings.write(json.dumps({"node": dict(self.node), "kind": kind}).encode())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def main() -> None:
    """Do all the work that is due on the phone which the standard input describes."""
    os.nice(_NICENESS)  # replies that are asked for meanwhile come first
    settings = json.load(sys.stdin)
    from fedcaptor.client.device import Device

    Device.of(settings["node"]).work(settings["kind"])


if __name__ == "__main__":
    main()
