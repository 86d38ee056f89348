"""Rest between messages, as a program of a third of the memory that only asks whether there is one.

The resident process waits most of its life, and Flower's library is most of its memory. `Rest.begin` exchanges the
process for this program: its number, its lock, its child and its place at the SuperLink stay. The program repeats
requests that Flower's library made, each signed anew. As soon as an answer has content, or anything is amiss, it
exchanges itself back (`woken`). So it decides nothing, and imports nothing of Flower.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import signal
import ssl
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256

from fedcaptor.client.node_key import node_key
from fedcaptor.client.processes import end_child, holds

ENDING = (signal.SIGTERM, signal.SIGINT)
"""Signals that end a resident process; they wait while one program takes the place of the other."""
_WOKEN = "FEDCAPTOR_WOKEN"  # variable of the environment, for the program that comes back
_KEPT_SECONDS = 4.0  # an unused connection; the SuperLink closes it after five
_TIMEOUT = 30.0
_MAX_ANSWER = 1 << 24


@dataclass(frozen=True)
class Requests:
    """Hold what a node sends while it waits.

    Attributes:
        address: Of the SuperLink, `host:port`.
        headers: Of each request.
        timestamp: Name of the header that says when a request was made.
        signature: Name of the header with the node's signature of that time.
        look: Path, and body in hex digits, of the request for a message: an answer without content says there is none.
        beat: Likewise of the one that says that the node is there, to be sent at once and every `beat_seconds`.
        leave: Likewise of the one that says that it goes.
        beat_seconds: Time between two of `beat`.
    """

    address: str
    headers: dict[str, str]
    timestamp: str
    signature: str
    look: tuple[str, str]
    beat: tuple[str, str]
    leave: tuple[str, str]
    beat_seconds: float


@dataclass(frozen=True)
class Woken:
    """Tell how a rest ended.

    Attributes:
        lock: Descriptor of the phone's lock, which is still held.
        child: Number of the child process that was started last; 0: none.
        answer: What the SuperLink sent, a message; empty where something else ended the rest.
        worked: A look got its answer; else resting does not work here, as behind a proxy for outgoing connections.
    """

    lock: int
    child: int
    answer: bytes
    worked: bool


@dataclass(frozen=True)
class Rest:
    """Describe a rest.

    Attributes:
        requests: What is sent meanwhile; None while `condition` does not hold: nothing.
        certificates: File of the authorities to trust; empty: those that Flower's library trusts then.
        key: File of the node's key.
        lock: Descriptor of the phone's lock.
        child: Number of the child process that was started last, which goes on; 0: none.
        poll_seconds: Most seconds between two looks.
        condition: Command that ends the rest when it fails, or without requests when it does not; empty: none.
        condition_seconds: Time between two runs of it.
    """

    requests: Requests | None
    certificates: str
    key: str
    lock: int
    child: int
    poll_seconds: float
    condition: str
    condition_seconds: float

    def begin(self, stopped: Callable[[], bool]) -> None:
        """Become the program that rests, unless the process is `stopped`. It comes back by this process's command.

        Raises OSError where that is impossible.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            if not stopped():
                command = [sys.executable, *sys.orig_argv[1:]]
                settings = _handed_on(json.dumps({"rest": asdict(self), "command": command}).encode())
                os.set_inheritable(self.lock, True)
                os.execv(sys.executable, [sys.executable, "-m", __name__, str(settings)])
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def woken() -> Woken | None:
    """Return how a rest ended, where this process comes from one; the next call returns None."""
    told = os.environ.pop(_WOKEN, None)
    if told is None:
        return None
    lock, child, answer, worked = map(int, told.split())
    os.set_inheritable(lock, False)
    return Woken(lock, child, _taken(answer), bool(worked))


def main() -> None:
    """Rest as the descriptor says that is the only argument, then come back; on SIGTERM take leave and end."""
    for number in ENDING:
        signal.signal(number, lambda *_: sys.exit())
    given = json.loads(_taken(int(sys.argv[1])))
    requests = given["rest"].pop("requests")
    rest = Rest(requests and Requests(**requests), **given["rest"])
    line = None if rest.requests is None else _Line(rest, rest.requests)
    answer, worked = b"", True
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        if line is None:
            while not holds(rest.condition):
                time.sleep(rest.condition_seconds)
        else:
            answer, worked = line.wait()
    except SystemExit:
        end_child(rest.child)
        if line is not None:
            line.leave()
        raise
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    os.environ[_WOKEN] = f"{rest.lock} {rest.child} {_handed_on(answer)} {int(worked)}"
    os.execv(given["command"][0], given["command"])


class _Line:
    """Send a node's requests, over one connection while it lasts. `send` raises OSError or HTTPException."""

    def __init__(self, rest: Rest, requests: Requests) -> None:
        self._rest, self._requests, self._key = rest, requests, node_key(Path(rest.key))
        if rest.certificates:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(rest.certificates)
        else:
            import certifi

            context = ssl.create_default_context(cafile=certifi.where())
        host, _, port = requests.address.rpartition(":")
        self._connection = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=_TIMEOUT, context=context)
        self._used = 0.0

    def wait(self) -> tuple[bytes, bool]:
        """Return the answer that has content, empty where something else ends the rest, and whether a look worked."""
        rest, worked, now = self._rest, False, time.monotonic()
        beat, look, check = now, now + rest.poll_seconds, now + rest.condition_seconds
        try:
            while True:
                time.sleep(max(0.0, min(beat, look, check) - time.monotonic()))
                now = time.monotonic()
                if now >= check:
                    check = now + rest.condition_seconds
                    if not holds(rest.condition):
                        return b"", worked
                if now >= beat:
                    beat = now + self._requests.beat_seconds
                    self.send(*self._requests.beat)
                if now >= look:
                    look = now + rest.poll_seconds * random.uniform(0.8, 1)
                    if answer := self.send(*self._requests.look):
                        return answer, True
                    worked = True
        except (OSError, http.client.HTTPException):  # the whole program finds out what is amiss, and says so
            return b"", worked

    def leave(self) -> None:
        """Say that the node goes, where the SuperLink can be reached."""
        self._connection.close()  # a signal may have cut a request short
        with suppress(OSError, http.client.HTTPException):
            self.send(*self._requests.leave)

    def send(self, path: str, body: str) -> bytes:
        if time.monotonic() - self._used > _KEPT_SECONDS:
            self._connection.close()  # it opens again
        made = datetime.now(tz=UTC).isoformat()
        signature = base64.b64encode(self._key.sign(made.encode(), ECDSA(SHA256()))).decode()
        signed = {self._requests.timestamp: made, self._requests.signature: signature}
        self._connection.request("POST", path, bytes.fromhex(body), self._requests.headers | signed)
        response = self._connection.getresponse()
        content = response.read(_MAX_ANSWER)
        if response.status != http.client.OK:
            raise http.client.HTTPException(f"HTTP status {response.status}")
        self._used = time.monotonic()
        return content


def _handed_on(content: bytes) -> int:
    """Return a descriptor of a nameless file with this content, which the next program inherits."""
    with TemporaryFile() as file:
        file.write(content)
        file.flush()
        descriptor = os.dup(file.fileno())
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.set_inheritable(descriptor, True)
    return descriptor


def _taken(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


if __name__ == "__main__":
    main()
