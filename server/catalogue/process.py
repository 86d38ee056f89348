"""Run the catalogue as one process, until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from fedcaptor.common.errors import ConfigError
from fedcaptor.common.files import read_bounded
from fedcaptor.server.catalogue.access import Access
from fedcaptor.server.catalogue.enrolled import EnrolledKeys
from fedcaptor.server.catalogue.service import ByteStream, serving
from fedcaptor.server.catalogue.store import Store
from fedcaptor.server.exporter import is_loopback, serve_registry

_PEM_BYTES = 1 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What the catalogue serves, to whom, where. `most`: reads at a time; `metrics_port` is on loopback."""

    folder: Path
    keys: Path
    host: str
    port: int
    certificate: Path | None
    key: Path | None
    metrics_port: int
    most: int

    def credentials(self) -> grpc.ServerCredentials | None:
        """Return those of TLS, None without a certificate. Raises ConfigError where others could listen then."""
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("certificate and key belong together: give both, or none behind a proxy that ends TLS")
        if self.certificate is None or self.key is None:
            if not is_loopback(self.host):
                raise ConfigError(f"host is {self.host!r} without TLS: give --certificate and --key, or 127.0.0.1")
            return None
        chain = read_bounded(self.certificate, _PEM_BYTES, "certificate")
        return grpc.ssl_server_credentials([(read_bounded(self.key, _PEM_BYTES, "key"), chain)])


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; reads that are under way may then go on for five seconds. Raises ConfigError."""
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    store, credentials, ended = Store(settings.folder), settings.credentials(), asyncio.Event()
    store.require()
    enrolled = EnrolledKeys(settings.keys)
    service = ByteStream(store, Access(enrolled, time.time))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    with serve_registry(service.metrics.registry, "127.0.0.1", settings.metrics_port) as metrics:
        async with serving(service, settings.host, settings.port, credentials, settings.most) as port:
            logger.info("port %d serves %d enrolled phones, metrics: %s", port, len(enrolled), metrics.url)
            await ended.wait()
