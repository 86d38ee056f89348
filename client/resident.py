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
from pathlib import Path
from threading import Event

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedcaptor.client.app import make_app
from fedcaptor.client.background import InChildProcess
from fedcaptor.client.device import Device
from fedcaptor.client.fleet import Link, connected
from fedcaptor.client.folder import NODE_FILE, RESIDENT_LOCK
from fedcaptor.client.node_key import node_key
from fedcaptor.client.phone import Phone
from fedcaptor.client.process_lock import acquire
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
    """Serve one device until `stop` is set; `once`: until no message came for so many seconds."""

    device: Device
    once: float | None = None
    stop: Event = field(default_factory=Event)
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
        with only_one(self.device.folder), _ended(phone):
            self.stop.wait(random.uniform(0, settings.spread_seconds))
            failures, reason = 0, ""
            while not self.stop.is_set():
                if not self._allowed():
                    if self.once is not None:
                        return
                    self.stop.wait(settings.condition_seconds)
                    continue
                try:
                    self._fetch()
                    if phone.background is not None:
                        phone.background.prepare("")  # so that the first vector need not wait
                    most, last_id = self.device.config.delivery.max_bytes, _last_id(number)
                    with connected(settings.superlink, certificates, key, most, last_id) as link:
                        write_whole(number, str(link.node_id).encode(), private=True)
                        logger.info("connected as node %d", link.node_id)
                        failures, reason = 0, ""
                        self._serve(link, phone)
                except LinkError as error:
                    failures += 1
                    if str(error) != reason:  # once, not with every attempt
                        logger.warning("%s; trying again", error)
                        reason = str(error)
                    self.stop.wait(min(2.0**failures, _LONGEST_WAIT) * random.uniform(0.5, 1))
                if self.once is not None and not failures:
                    return

    def _serve(self, link: Link, phone: Phone) -> None:
        """Answer messages while the phone may be online."""
        settings, app = self.device.config.device, make_app(lambda context: phone)
        quiet = checked = time.monotonic()
        while not self.stop.is_set():
            if time.monotonic() - checked >= settings.condition_seconds:
                checked = time.monotonic()
                if not self._allowed():
                    return
            message = link.receive()
            if message is not None:
                begin, cpu = time.monotonic(), time.process_time()
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
            self.stop.wait(min(settings.poll_seconds, SOON + idle / 4) * random.uniform(0.8, 1))

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

    def _allowed(self) -> bool:
        """Tell whether the configured condition holds."""
        command = self.device.config.device.condition
        if not command:
            return True
        try:
            done = subprocess.run(command, shell=True, capture_output=True, timeout=30, check=False)
        except subprocess.TimeoutExpired:
            logger.warning("device.condition takes more than 30 seconds: shorten it")
            return False
        return done.returncode == 0


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
def only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of a phone's resident process. Raises StateError where another one has it."""
    lock = acquire(folder / RESIDENT_LOCK)
    if lock is None:
        raise StateError(f"{folder} has a resident process already: stop it first")
    try:
        yield
    finally:
        os.close(lock)
