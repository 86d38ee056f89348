"""Answer Read of google.bytestream from a store, on one event loop.

A reply is read from the disk piece by piece, each when the one before has left. So a connection holds one piece,
whatever the file's size and however slow the phone.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fedcaptor.common.catalogue.bytestream_pb2 import ReadRequest, ReadResponse
from fedcaptor.common.catalogue.requests import MOST_SECONDS, SERVICE
from fedcaptor.common.errors import ConfigError
from fedcaptor.server.catalogue.access import Access
from fedcaptor.server.catalogue.metrics import Metrics
from fedcaptor.server.catalogue.store import Store

PIECE = 1 << 15
"""Bytes of a message. It arrives whole or not at all, so that a bad network brings something if it is small; and larger
ones cost memory for each connection and are not faster.
"""
_REQUEST_BYTES = 1 << 10
_OPTIONS = (
    ("grpc.max_receive_message_length", _REQUEST_BYTES),
    ("grpc.max_metadata_size", 1 << 13),
    ("grpc.max_concurrent_streams", 16),  # of one connection
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_time_ms", 30_000),  # finds connections that are gone without a word
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared
)

logger = logging.getLogger(__name__)


class _Denied(Exception):
    """A read that ends with a status code."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


@dataclass(frozen=True)
class ByteStream:
    """The service: reads of a store, for those that `access` lets in."""

    store: Store
    access: Access
    metrics: Metrics = field(default_factory=Metrics)

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the methods for gRPC's server."""
        read = grpc.unary_stream_rpc_method_handler(
            self.read,
            request_deserializer=ReadRequest.FromString,
            response_serializer=None,  # made in `_message`
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Read": read})

    async def read(self, request: ReadRequest, context: grpc.aio.ServicerContext[ReadRequest, ReadResponse]) -> None:
        """Stream a resource's bytes from an offset on."""
        code = grpc.StatusCode.CANCELLED  # by the phone, unless it ends otherwise
        try:
            await self._answer(request, context)
            code = grpc.StatusCode.OK
        except _Denied as denied:
            code = denied.code
            await context.abort(code, denied.text)
        except OSError:
            code = grpc.StatusCode.INTERNAL
            logger.exception("%r cannot be read", request.resource_name)
            await context.abort(code, "the catalogue cannot read it")
        except grpc.aio.InternalError:  # what a write raises once the phone, or its deadline, has ended the read
            raise asyncio.CancelledError from None
        except Exception:
            code = grpc.StatusCode.UNKNOWN
            raise
        finally:
            self.metrics.requests.labels("Read", code.name).inc()
            if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
                self.metrics.failures.inc()

    async def _answer(self, request: ReadRequest, context: grpc.aio.ServicerContext[ReadRequest, ReadResponse]) -> None:
        reason = self.access.refusal(request, dict(context.invocation_metadata() or ()))
        if reason is not None:
            logger.warning("a read is refused: %s", reason)
            raise _Denied(grpc.StatusCode.UNAUTHENTICATED, "refused")
        seconds = context.time_remaining()
        if seconds is None or seconds > MOST_SECONDS + 1:
            text = f"a read needs a deadline, of {MOST_SECONDS} seconds at most"
            raise _Denied(grpc.StatusCode.INVALID_ARGUMENT, text)
        path = self.store.path(request.resource_name)
        if path is None:
            raise _Denied(grpc.StatusCode.INVALID_ARGUMENT, "a resource is manifests/latest or blobs/ and a SHA-256")
        with _opened(path) as (file, size):
            start, end = _range(request, size)
            if start and end == size:
                self.metrics.resumes.inc()
            os.posix_fadvise(file, start, end - start, os.POSIX_FADV_WILLNEED)  # no read waits long for the disk
            while start < end:
                size = min(PIECE, end - start)
                await context.write(_message(file, start, size))  # waits while the phone does not read on
                self.metrics.sent.inc(size)
                start += size


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """Open a resource: its descriptor and size. Raises _Denied where there is none."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _Denied(grpc.StatusCode.NOT_FOUND, "the catalogue does not have it") from None
    try:
        yield file, os.fstat(file).st_size
    finally:
        os.close(file)


def _message(file: int, start: int, size: int) -> bytes:
    """Return a serialised ReadResponse: while a slow phone lets it wait, there is no other copy."""
    piece = os.pread(file, size, start)
    if len(piece) < size:
        raise OSError("the file became shorter")
    return bytes(ReadResponse(data=piece).SerializeToString())


def _range(request: ReadRequest, size: int) -> tuple[int, int]:
    """Return first byte and end of what is asked for. Raises _Denied where it lies outside."""
    if request.read_limit < 0:
        raise _Denied(grpc.StatusCode.INVALID_ARGUMENT, "read_limit is negative: 0 is no limit")
    if not 0 <= request.read_offset <= size:
        raise _Denied(grpc.StatusCode.OUT_OF_RANGE, "read_offset is outside the resource")
    end = min(size, request.read_offset + request.read_limit) if request.read_limit else size
    return request.read_offset, end


@asynccontextmanager
async def serving(
    service: ByteStream, host: str, port: int, credentials: grpc.ServerCredentials | None, most: int
) -> AsyncIterator[int]:
    """Serve until the block ends; gives the port. `most`: reads at a time, beyond which they are refused.

    Without `credentials` it speaks plain text, for a proxy on the same machine that ends TLS. Raises ConfigError where
    the address cannot be used.
    """
    server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=most)
    server.add_generic_rpc_handlers((service.handlers(),))
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"the catalogue cannot listen on {address} ({error}): give another port or host") from None
    await server.start()
    for name in ("", SERVICE):
        await status.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield bound
    finally:
        await status.enter_graceful_shutdown()
        await server.stop(grace=5)
