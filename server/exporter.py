"""Export metrics of runs to Prometheus: snapshots are read at each scrape, so no server need run.

`DIR` is the folder of one run, with its `snapshot.json`, or holds a folder for each run of a deployment.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from cryptography import x509
from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from fedcaptor.common.config import SMALL_COHORTS
from fedcaptor.common.errors import ConfigError, StateError
from fedcaptor.common.files import read_bounded
from fedcaptor.server.metrics import RUNS, metrics_of
from fedcaptor.server.snapshot import FILE, Snapshot, read

PORT = 9464
SECONDS = 10.0
"""How long a connection may be silent."""
CONNECTIONS = 16
"""Connections that are served at a time; others are closed."""

logger = logging.getLogger(__name__)


def run_folders(directory: Path) -> dict[str, Path]:
    """Return the folders of runs by name, those at work last first: `directory` itself, or those in it."""
    if (directory / FILE).exists():
        return {directory.resolve().name: directory}
    try:
        found = [(file.stat().st_mtime, file.parent) for file in directory.glob(f"*/{FILE}")]
    except OSError:  # one that goes meanwhile: the next scrape sees what there is
        return {}
    return {folder.name: folder for _, folder in sorted(found, reverse=True)}


class RunsCollector(Collector):
    """Collect metrics of the runs in `directory`, of `RUNS` at most.

    A run whose snapshot is damaged has `fedcaptor_snapshot_readable` 0 and no other metric; so has a run of small
    cohorts where other machines can read it (`public`). `certificates`: files whose expiry is exported.
    """

    def __init__(self, directory: Path, public: bool = False, certificates: Sequence[Path] = ()) -> None:
        self._directory, self._public, self._certificates = directory, public, certificates
        self._problems: dict[str, str] = {}

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics of this moment."""
        folders = run_folders(self._directory)
        if not folders:
            self._tell("", f"{self._directory} holds no {FILE} and no folder with one: start a run, or give its folder")
        yield GaugeMetricFamily("fedcaptor_runs", f"Runs found; the newest {RUNS} are exported.", value=len(folders))
        readable = GaugeMetricFamily(
            "fedcaptor_snapshot_readable", "1 when the run's snapshot could be read, else 0.", labels=["run"]
        )
        runs: dict[str, Snapshot] = {}
        for name, folder in list(folders.items())[:RUNS]:
            try:
                runs[name] = self._read(folder / FILE)
            except StateError as error:
                self._tell(name, str(error))
            readable.add_metric([name], float(name in runs))
        yield readable
        yield from metrics_of(runs)
        yield self._expiries()

    def _read(self, path: Path) -> Snapshot:
        snapshot = read(path)
        if self._public and SMALL_COHORTS in snapshot.marks:
            raise StateError("a run of small cohorts is not served to other machines: bind the exporter to 127.0.0.1")
        return snapshot

    def _expiries(self) -> Metric:
        family = GaugeMetricFamily(
            "fedcaptor_certificate_expiry_timestamp_seconds",
            "When a certificate expires; absent where it cannot be read.",
            labels=["certificate"],
        )
        for path in self._certificates:
            try:
                family.add_metric([path.name], expiry_of(path))
            except ConfigError as error:
                self._tell(str(path), str(error))
        return family

    def _tell(self, of: str, problem: str) -> None:
        """Log a problem once."""
        if self._problems.get(of) != problem:
            logger.warning("%s", problem)
        self._problems[of] = problem


def expiry_of(path: Path) -> float:
    """Return when the first of the certificates (PEM) in a file expires. Raises ConfigError where there is none."""
    try:
        found = x509.load_pem_x509_certificates(read_bounded(path, 1 << 20, "file of certificates"))
    except ValueError as error:
        raise ConfigError(f"{path} holds no certificate in PEM ({error}): give the server's certificate") from error
    return min(certificate.not_valid_after_utc.timestamp() for certificate in found)


@dataclass(frozen=True)
class Access:
    """Say who may scrape: `certificate` and `key` (PEM) switch TLS on, `password` is a file with "user:password"."""

    certificate: Path | None = None
    key: Path | None = None
    password: Path | None = None

    def context(self) -> ssl.SSLContext | None:
        """Return the TLS context, None without. Raises ConfigError where certificate and key are no pair."""
        if self.certificate is None and self.key is None:
            return None
        if self.certificate is None or self.key is None:
            raise ConfigError("TLS needs a certificate and its key: give both files")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(
                f"{self.certificate} and {self.key} cannot be used for TLS ({error}): give a certificate and its key"
            ) from error
        return context

    def guarded(self, app: Callable[..., Any]) -> Callable[..., Any]:
        """Return a WSGI application that asks for the password, where there is one. Raises ConfigError on its file."""
        if self.password is None:
            return app
        text = read_bounded(self.password, 1024, "password").strip()
        if self.password.stat().st_mode & 0o077:
            raise ConfigError(f"{self.password} can be read by others: run chmod 600 on it")
        user, colon, word = text.partition(b":")
        if not (user and colon and word) or b"\n" in text:
            raise ConfigError(f"{self.password} must hold one line, user:password")
        expected = b"Basic " + base64.b64encode(text)

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            given = str(environ.get("HTTP_AUTHORIZATION", "")).encode()
            if hmac.compare_digest(given, expected):
                return app(environ, start_response)
            start_response("401 Unauthorized", [("WWW-Authenticate", 'Basic realm="metrics"')])
            return [b""]

        return answer


class _Handler(WSGIRequestHandler):
    timeout = SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Log no request."""


class _Server(ThreadingWSGIServer):
    """Serve each of few connections in a thread of its own; a handshake of TLS is part of it."""

    tls: ssl.SSLContext | None = None

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

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(SECONDS)
        with self.tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a connection ended early", exc_info=True)


def _serve(
    host: str, port: int, app: Callable[..., Any], tls: ssl.SSLContext | None
) -> tuple[WSGIServer, threading.Thread]:
    """Serve the application from a thread. Raises OSError when the address cannot be used."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    kind: type[WSGIServer] = type("_Server", (_Server,), {"address_family": family, "tls": tls})
    server = make_server(str(address[0]), port, app, kind, _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    return server, thread


@dataclass
class Exporter:
    """Hold a running exporter; leaving its `with` block, or `close`, stops it."""

    host: str
    port: int
    tls: bool
    _server: WSGIServer
    _thread: threading.Thread

    @property
    def url(self) -> str:
        """Return the address to scrape."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}/metrics"

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


def start_exporter(
    directory: Path,
    host: str = "127.0.0.1",
    port: int = PORT,
    access: Access | None = None,
    certificates: Sequence[Path] = (),
) -> Exporter:
    """Serve the runs in `directory` from a thread. `port` 0 takes a free one.

    Without `access` anybody who reaches the port may scrape: another host than loopback must be asked for and is logged
    then. Raises ConfigError when the address or a file cannot be used.
    """
    access, public = access or Access(), not is_loopback(host)
    for certificate in certificates:
        expiry_of(certificate)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunsCollector(directory, public, certificates))
    ProcessCollector(registry=registry)
    return serve_registry(registry, host, port, access)


def serve_registry(registry: CollectorRegistry, host: str, port: int, access: Access | None = None) -> Exporter:
    """Serve a registry's metrics as `start_exporter` does those of runs."""
    access, public = access or Access(), not is_loopback(host)
    if not host.strip():
        raise ConfigError("the exporter's host is empty, must be an address: give 127.0.0.1, or 0.0.0.0 to serve all")
    if not 0 <= port <= 65535:
        raise ConfigError(f"the exporter's port is {port}, must lie in 0..65535: give another one")
    tls = access.context()
    if public and access.password is not None and tls is None:
        raise ConfigError(f"the password would cross the network to {host} in plain text: give a certificate and key")
    app = access.guarded(make_wsgi_app(registry))
    try:
        server, thread = _serve(host, port, app, tls)
    except OSError as error:
        raise ConfigError(
            f"the exporter cannot listen on {host} port {port} ({error.strerror or error}): "
            "stop what uses it or give another port or host"
        ) from error
    if public and access.password is None:
        logger.warning("the exporter serves %s without authentication: let the monitoring network alone reach it", host)
    return Exporter(host, int(server.server_address[1]), tls is not None, server, thread)


def is_loopback(host: str) -> bool:
    """Tell whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
