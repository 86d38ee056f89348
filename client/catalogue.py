"""Read from the operator's catalogue, as a phone whose node key is enrolled there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from fedcaptor.common.catalogue.bytestream_pb2 import ReadRequest, ReadResponse
from fedcaptor.common.catalogue.manifest import MAX_BYTES, Manifest, opened
from fedcaptor.common.catalogue.requests import LATEST, MOST_SECONDS, READ, metadata
from fedcaptor.common.errors import LinkError

_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),  # finds a server that is gone without a word
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 100),  # the pauses are ours
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),  # a read is signed for one moment: each attempt is a new one
)


@dataclass(frozen=True)
class Catalogue:
    """An open connection. Each call may raise LinkError."""

    channel: grpc.Channel
    key: EllipticCurvePrivateKey
    clock: Callable[[], float] = time.time

    def read(self, resource: str, offset: int = 0, limit: int = 0) -> Iterator[bytes]:
        """Yield a resource's bytes from `offset` on, `limit` at most if it is above 0. What a deadline cuts off is left
        to another read.
        """
        method = self.channel.unary_stream(READ, ReadRequest.SerializeToString, ReadResponse.FromString)
        request = ReadRequest(resource_name=resource, read_offset=offset, read_limit=limit)
        proof = metadata(self.key, resource, offset, limit, int(self.clock()))
        call = method(request, timeout=MOST_SECONDS, metadata=proof)
        try:
            for response in call:
                yield response.data
        except grpc.RpcError as error:
            raise _explained(error) from None
        finally:
            call.cancel()

    def manifest(self, operator: bytes) -> tuple[Manifest, bytes]:
        """Return the newest manifest, and the envelope that `operator`, a public key, signed.

        Raises WireError for one that it did not sign.
        """
        envelope = bytearray()
        for piece in self.read(LATEST, 0, MAX_BYTES):
            envelope += piece
            if len(envelope) > MAX_BYTES:
                raise LinkError(f"the catalogue's manifest has more than {MAX_BYTES:,} bytes: ask its operator")
        return opened(bytes(envelope), operator), bytes(envelope)


@contextmanager
def connected(address: str, root_certificates: bytes | None, key: EllipticCurvePrivateKey) -> Iterator[Catalogue]:
    """Open a connection to the catalogue at `address` ("host:port"), over TLS, as the phone of a node key.

    `root_certificates`: PEM of the authorities to trust; None: the well-known ones.
    """
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificates), options=_OPTIONS) as channel:
        yield Catalogue(channel, key)


def _explained(error: grpc.RpcError) -> LinkError:
    """Say what to do about a status."""
    code, text = error.code(), str(error.details() or "")[:200]
    lasting = {
        grpc.StatusCode.UNAUTHENTICATED: "have this phone's public key enrolled there, and compare both clocks",
        grpc.StatusCode.NOT_FOUND: "the operator has published other files meanwhile: fetch again",
        grpc.StatusCode.UNIMPLEMENTED: "it is no catalogue, or the proxy before it passes other paths: compare address",
    }
    remedy = lasting.get(code, "compare address, network and certificates, or try again later")
    return LinkError(f"the catalogue says {code.name} ({text}): {remedy}", again=code not in lasting)
