"""Answer phones that enrol themselves by a token. The front passes this one method; who has no token can do nothing."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedcaptor.common.catalogue.requests import KEY_TYPE
from fedcaptor.common.enrolment.enrolment_pb2 import EnrolReply, EnrolRequest
from fedcaptor.common.enrolment.proof import METHOD, SERVICE, TOKEN, is_proven
from fedcaptor.common.errors import ConfigError, FedcaptorError
from fedcaptor.deploy.enrolment import alone, name_of, write_enrolled
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.tokens import find_token, spend_token

_THREADS, _MOST = 2, 16
_OPTIONS = (
    ("grpc.max_receive_message_length", 1 << 10),
    ("grpc.max_metadata_size", 1 << 13),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Enrolment:
    """The service. A refusal tells the phone nothing; its reason is for the log, which has no token and no key."""

    deployment: Deployment
    clock: Callable[[], float] = time.time

    def enrol(self, request: EnrolRequest, context: grpc.ServicerContext) -> EnrolReply:
        """Let a phone in, or end with UNAUTHENTICATED."""
        try:
            reason = self.refusal(request)
        except (FedcaptorError, OSError) as error:
            logger.error("a phone cannot be enrolled: %s", error)
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server cannot enrol it now")
        if reason is not None:
            logger.warning("a phone is refused: %s", reason)
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "refused")
        return EnrolReply()

    def refusal(self, request: EnrolRequest) -> str | None:
        """Enrol a phone, or say why not. A phone whose reply was lost may ask again: it is let in already.

        The token is spent before the key is written: a kill between the two costs a new token, and none serves twice.
        """
        if not TOKEN.fullmatch(request.token):
            return "what it sent is no token"
        key = f"{KEY_TYPE} {request.public_key}\n".encode()
        with alone(self.deployment):
            token = find_token(self.deployment, request.token)
            if token is None:
                return "its token was never given"
            if token.expires <= self.clock():
                return f"the token of {token.name} has expired"
            if not is_proven(request):
                return f"the token of {token.name} came with a key that its sender does not have"
            known = name_of(self.deployment, key)
            if token.key:
                again = (token.key, token.name) == (request.public_key, known)
                return None if again else f"the token of {token.name} is spent"
            if known is not None:
                return f"the token of {token.name} came with the key of {known}"
            spend_token(self.deployment, request.token, token, request.public_key)
            write_enrolled(self.deployment, token.name, key)
        logger.info("%s is enrolled", token.name)
        return None


@contextmanager
def serving(service: Enrolment, port: int) -> Iterator[int]:
    """Serve on loopback until the block ends; gives the port. Raises ConfigError where it is taken."""
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=_OPTIONS, maximum_concurrent_rpcs=_MOST)
    method = grpc.unary_unary_rpc_method_handler(
        service.enrol, request_deserializer=EnrolRequest.FromString, response_serializer=EnrolReply.SerializeToString
    )
    name = METHOD.rpartition("/")[2]
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {name: method}),))
    status = health.HealthServicer()
    status.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    try:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")  # the front ends TLS
    except RuntimeError as error:
        raise ConfigError(
            f"enrolment cannot listen on port {port} ({error}): change deployment.enrolment_port"
        ) from None
    server.start()
    try:
        yield bound
    finally:
        server.stop(grace=5).wait()


def serve(deployment: Deployment) -> None:
    """Serve until SIGTERM or SIGINT."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with serving(Enrolment(deployment), deployment.settings.enrolment_port) as port:
        logger.info("port %d enrols phones that have a token", port)
        ended.wait()
