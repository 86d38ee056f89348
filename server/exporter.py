"""Export a run's metrics to Prometheus: `DIR/snapshot.json` is read at each scrape, so the server need not run."""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from fedcaptor.common.config import SMALL_COHORTS
from fedcaptor.common.errors import ConfigError, StateError
from fedcaptor.server.metrics import metrics_of, readable
from fedcaptor.server.snapshot import FILE, Snapshot, read

PORT = 9464
SECONDS = 10.0
"""How long a connection may be silent."""
CONNECTIONS = 16
"""Connections that are served at a time; others are closed."""

logger = logging.getLogger(__name__)


class SnapshotCollector(Collector):
    """Collect metrics of the snapshot in `directory`.

    Where it is missing or damaged, `fedcaptor_snapshot_readable` 0 is the only metric; so it is for a run of small
    cohorts where other machines can read it (`public`).
    """

    def __init__(self, directory: Path, public: bool = False) -> None:
        self._path, self._public = directory / FILE, public
        self._problem: str | None = None

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics of this moment."""
        snapshot: Snapshot | None = None
        problem: str | None = None
        try:
            snapshot = read(self._path)
            if self._public and SMALL_COHORTS in snapshot.marks:
                snapshot = None
                problem = "a run of small cohorts is not served to other machines: bind the exporter to 127.0.0.1"
        except StateError as error:
            problem = str(error)
        if problem is not None and problem != self._problem:
            logger.warning("%s", problem)
        self._problem = problem
        yield readable(snapshot)
        if snapshot is not None:
            yield from metrics_of(snapshot, time.time())


class _Handler(WSGIRequestHandler):
    timeout = SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Log no request."""


class _Server(ThreadingWSGIServer):
    """Serve each of few connections in a thread of its own."""

    def __init__(self, *args: Any) -> None:
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a connection ended early", exc_info=True)


def _serve(host: str, port: int, registry: CollectorRegistry) -> tuple[WSGIServer, threading.Thread]:
    """Serve the registry from a thread. Raises OSError when the address cannot be used."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    kind: type[WSGIServer] = type("_Server", (_Server,), {"address_family": family})
    server = make_server(str(address[0]), port, make_wsgi_app(registry), kind, _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    return server, thread


@dataclass
class Exporter:
    """Hold a running exporter; leaving its `with` block, or `close`, stops it."""

    host: str
    port: int
    _server: WSGIServer
    _thread: threading.Thread

    @property
    def url(self) -> str:
        """Return the address to scrape."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def wait(self) -> None:
        """Block until `close` or an interruption."""
        self._thread.join()

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start_exporter(directory: Path, host: str = "127.0.0.1", port: int = PORT) -> Exporter:
    """Serve the snapshot in `directory` from a thread. `port` 0 takes a free one.

    There is no authentication: another host than loopback must be asked for and is logged. Raises ConfigError when the
    address cannot be used.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(directory, public=not is_loopback(host)))
    return serve_registry(registry, host, port)


def serve_registry(registry: CollectorRegistry, host: str, port: int) -> Exporter:
    """Serve a registry's metrics as `start_exporter` does those of a snapshot."""
    if not host.strip():
        raise ConfigError("the exporter's host is empty, must be an address: give 127.0.0.1, or 0.0.0.0 to serve all")
    if not 0 <= port <= 65535:
        raise ConfigError(f"the exporter's port is {port}, must lie in 0..65535: give another one")
    try:
        server, thread = _serve(host, port, registry)
    except OSError as error:
        raise ConfigError(
            f"the exporter cannot listen on {host} port {port} ({error.strerror or error}): "
            "stop what uses it or give another port or host"
        ) from error
    if not is_loopback(host):
        logger.warning("the exporter serves %s without authentication: let the monitoring network alone reach it", host)
    return Exporter(host, int(server.server_address[1]), server, thread)


def is_loopback(host: str) -> bool:
    """Tell whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
