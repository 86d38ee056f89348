"""Run a phone's one long-lived process: check in with the SuperLink, answer its messages, and be patient.

It answers the registered questions of `fedcaptor.client.app` and nothing else; code that comes with a run is ignored.
"""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedcaptor.client.app import make_app
from fedcaptor.client.background import InChildProcess
from fedcaptor.client.device import Device
from fedcaptor.client.fleet import Link, connected, waiting
from fedcaptor.client.folder import NODE_FILE, RESIDENT_LOCK
from fedcaptor.client.node_key import node_key
from fedcaptor.client.phone import Phone
from fedcaptor.client.process_lock import acquire
from fedcaptor.client.processes import holds, refusal
from fedcaptor.client.resting import Requests, Rest, Woken
from fedcaptor.common.errors import ConfigError, FedcaptorError, LinkError, StateError
from fedcaptor.common.files import read_bounded, write_whole

logger = logging.getLogger(__name__)

SOON = 0.2  # seconds until the next look after a message: the server is likely to ask again
_LONGEST_WAIT = 300.0  # between two attempts to connect
_MAX_CERTIFICATE_BYTES = 1 << 20
_FETCH_SECONDS = 3600.0
_LOOK_SECONDS = 0.2


@dataclass
class Resident:
    """Serve one device until `stop` is set; `once`: until no message came for so many seconds.

    `rests`: between messages the process becomes a smaller one, see `fedcaptor.client.resting`; for a process that does
    nothing else. `woken`: it comes from such a rest.
    """

    device: Device
    once: float | None = None
    stop: Event = field(default_factory=Event)
    rests: bool = False
    woken: Woken | None = None
    _next_fetch: float = 0.0

    def run(self) -> None:
        """Check in again and again. Raises ConfigError on settings that cannot work, StateError where the phone's
        folder has a resident process already.
        """
        settings, place = self.device.config.device, self.device.place
        key = node_key(place / settings.key)
        roots = settings.root_certificates
        certificates = read_bounded(place / roots, _MAX_CERTIFICATE_BYTES, "certificate") if roots else None
        phone, number = self.device.phone(self.stop.wait), self.device.folder / NODE_FILE
        received = [self.woken.answer] if self.woken and self.woken.answer else []
        if self.woken is not None:
            if received:  # a message waits, and files are fetched before a phone checks in
                self._next_fetch = time.monotonic() + _FETCH_SECONDS
            if isinstance(phone.background, InChildProcess):
                phone.background.adopted = self.woken.child
        with only_one(self.device.folder, self.woken) as lock, _ended(phone):
            if self.woken is None:
                self.stop.wait(random.uniform(0, settings.spread_seconds))
            failures, reason, away = 0, "", ""
            while not self.stop.is_set():
                if (refused := refusal(settings.condition)) is not None:
                    if refused != away:
                        logger.info("device.condition does not hold: %s", refused)
                        away = refused
                    if self.once is not None:
                        return
                    self._rest(None, lock, phone)
                    self.stop.wait(settings.condition_seconds)
                    continue
                try:
                    self._fetch()
                    if phone.background is not None:
                        phone.background.prepare("")  # so that the first vector need not wait
                    most, last_id = self.device.config.delivery.max_bytes, _last_id(number)
                    with connected(settings.superlink, certificates, key, most, last_id, received) as link:
                        write_whole(number, str(link.node_id).encode(), private=True)
                        logger.info("connected as node %d", link.node_id)
                        failures, reason = 0, ""
                        requests = partial(waiting, settings.superlink, key, link.node_id)
                        self._serve(link, phone, partial(self._rest, requests, lock, phone))
                except LinkError as error:
                    failures += 1
                    if str(error) != reason:  # once, not with every attempt
                        logger.warning("%s; trying again", error)
                        reason = str(error)
                    self.stop.wait(min(2.0**failures, _LONGEST_WAIT) * random.uniform(0.5, 1))
                if self.once is not None and not failures:
                    return

    def _serve(self, link: Link, phone: Phone, rest: Callable[[], None]) -> None:
        """Answer messages while the phone may be online, and `rest` once none has come for long."""
        settings, app = self.device.config.device, make_app(lambda context: phone)
        quiet = checked = time.monotonic()
        usual = 0.0
        while not self.stop.is_set():
            if time.monotonic() - checked >= settings.condition_seconds:
                checked = time.monotonic()
                if not holds(settings.condition):
                    return
            message = link.receive()
            if message is not None:
                begin, cpu = time.monotonic(), time.process_time()
                usual = begin - quiet
                reply, kind = _answered(app, message, link.node_id), message.metadata.message_type
                seconds, cpu = time.monotonic() - begin, time.process_time() - cpu
                if self.stop.is_set():  # a wait that was cut short would tell how long the work took
                    return
                link.send(reply, seconds)
                logger.info("answered %s in %.3f s, %.3f s of CPU", kind, seconds, cpu)
                quiet = time.monotonic()
            idle = time.monotonic() - quiet
            if self.once is not None and idle >= self.once:
                return
            if idle >= settings.rest_seconds:  # whatever the child does: it would show
                rest()
            self.stop.wait(pause(idle, usual, settings.poll_seconds) * random.uniform(0.8, 1))

    def _rest(self, requests: Callable[[], Requests] | None, lock: int, phone: Phone) -> None:
        """Rest, if this process does; returns where it does not, or is to stop. `requests`: see `Rest`."""
        settings, place = self.device.config.device, self.device.place.absolute()
        if not self.rests or settings.rest_seconds == 0:
            return
        rest = Rest(
            requests and requests(),
            str(place / settings.root_certificates) if settings.root_certificates else "",
            str(place / settings.key),
            lock,
            phone.background.child if isinstance(phone.background, InChildProcess) else 0,
            settings.poll_seconds,
            settings.condition,
            settings.condition_seconds,
        )
        logger.info("resting until there is a message" if requests else "resting until device.condition holds")
        try:
            rest.begin(self.stop.is_set)
        except OSError as error:
            logger.warning("this process cannot rest: %s", error)
            self.rests = False

    def _fetch(self) -> None:
        """Bring weights and graph up to date, where there is a catalogue, but no more often than each hour.

        Raises LinkError where the phone lacks them and can do nothing without.
        """
        if not self.device.config.device.catalogue:
            return
        if time.monotonic() >= self._next_fetch:
            self._next_fetch = time.monotonic() + _FETCH_SECONDS
            self._run_fetch()
        try:
            self.device.require_files()
        except FedcaptorError as error:
            self._next_fetch = 0.0
            raise LinkError(str(error)) from None

    def _run_fetch(self) -> None:
        """Fetch in a process of its own, which gives its memory back; what came when it is stopped is kept."""
        command = [sys.executable, "-m", "fedcaptor.client.fetch", self.device.node["file"]]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
            while child.poll() is None:
                if self.stop.wait(_LOOK_SECONDS):
                    child.terminate()
            assert child.stdout is not None
            text = child.stdout.read(1 << 12).decode(errors="replace").strip()
        if text:
            logger.log(logging.WARNING if child.returncode else logging.INFO, "%s", text)


def pause(idle: float, usual: float, longest: float) -> float:
    """Return seconds until the next look for a message, `idle` seconds after the last reply, at most `longest`.

    The steps of a sum take about as long as each other. So the first look is at half of the `usual` time, in which the
    last message came after the reply before it, and further ones follow within a quarter of what has passed.
    """
    return min(longest, max(SOON + idle / 4, usual / 2 - idle))


def _answered(app: Callable[[Message, Context], Message], message: Message, node: int) -> Message:
    """Return the reply to a message; a failure is an error reply, of one word."""
    try:
        return app(message, Context(message.metadata.run_id, node, {}, RecordDict(), {}))
    except Exception as error:
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__), reply_to=message)


def _last_id(file: Path) -> int | None:
    """Return the node's number of the last connection, if any."""
    try:
        return int(read_bounded(file, 32, "number"))
    except (ConfigError, ValueError):
        return None


@contextmanager
def _ended(phone: Phone) -> Iterator[None]:
    """End the phone's child process with the block."""
    try:
        yield
    finally:
        if isinstance(phone.background, InChildProcess):
            phone.background.cancel()


@contextmanager
def only_one(folder: Path, woken: Woken | None = None) -> Iterator[int]:
    """Hold the lock of a phone's resident process, which one that is `woken` has. Gives its descriptor.

    Raises StateError where another one has it.
    """
    lock = woken.lock if woken else acquire(folder / RESIDENT_LOCK)
    if lock is None:
        raise StateError(f"{folder} has a resident process already: stop it first")
    try:
        yield lock
    finally:
        os.close(lock)
