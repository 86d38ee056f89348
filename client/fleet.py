"""Speak Flower's Fleet protocol as one node, by Flower's own library: the one module that touches its internals.

Messages come in and replies go out; the code that a SuperLink offers for a run is never asked for. The protocol is
internal to a minor release of Flower; `tests/integration/test_resident_phones.py` holds this module against a real
SuperLink.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Message
from flwr.app.message.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_COMPONENT_NAME_METADATA_KEY,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLWR_PACKAGE_VERSION_METADATA_KEY,
)
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.version import package_name, package_version
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedcaptor.client.resting import Requests
from fedcaptor.common.errors import LinkError

if TYPE_CHECKING:
    from flwr.proto.message_pb2 import ObjectTree
    from google.protobuf.message import Message as ProtobufMessage

MAX_OBJECTS = 4096
"""Most parts of one message; Flower cuts arrays into parts of 5 MB."""
_BEAT_SECONDS = 0.8 * HEARTBEAT_DEFAULT_INTERVAL
_PART_SECONDS = 0.2  # before a part of a message is asked for again that the server has announced, but not sent yet


@dataclass(frozen=True, eq=False)
class Link:
    """A node's open connection to a SuperLink. `node_id`: its number there. `received`: see `connected`. Each call may
    raise LinkError.
    """

    node_id: int
    client: FleetHttpClient
    max_bytes: int
    received: list[bytes]

    def receive(self) -> Message | None:
        """Return the next message, None where there is none. One above `max_bytes` is left unanswered."""
        with _explained():
            node = Node(node_id=self.node_id)
            if self.received:
                response = PullMessagesResponse.FromString(self.received.pop())
            else:
                response = self.client.PullMessages(PullMessagesRequest(node=node))
            if not response.messages_list:
                return None
            run_id = message_from_proto(response.messages_list[0]).metadata.run_id
            tree = response.message_object_trees[0]
            pull = make_pull_object_fn_protobuf(self.client.PullObject, node, run_id)
            message = pull_and_inflate_object_from_tree(
                tree,
                _within(self.max_bytes, tree, pull),
                make_confirm_message_received_fn_protobuf(self.client.ConfirmMessageReceived, node, run_id),
                return_type=Message,
                initial_backoff=_PART_SECONDS,
            )
        message.metadata.__dict__["_message_id"] = tree.object_id  # which is not in the message itself
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, self.node_id, 0  # of the reply
        return message

    def send(self, reply: Message, seconds: float) -> None:
        """Send a reply; the SuperLink is told that it took so many `seconds`."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        run_id = reply.metadata.run_id
        bare = remove_content_from_message(reply) if reply.has_content() else reply
        with _explained(), no_object_id_recompute():
            node = Node(node_id=self.node_id)
            response = self.client.PushMessages(
                PushMessagesRequest(
                    node=node,
                    messages_list=[message_to_proto(bare)],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[seconds],
                )
            )
            push_objects(
                get_all_nested_objects(reply),
                make_push_object_fn_protobuf(self.client.PushObject, node, run_id, response.session_id),
                object_ids_to_push=set(response.objects_to_push),
            )

    def beat(self, stop: Event) -> None:
        """Tell the SuperLink again and again that this node is there, until `stop` is set.

        At once too: the last time may be long ago where an earlier process was killed, or rests and messages alternate.
        """
        request = _heartbeat(self.node_id)
        while not stop.is_set():
            with suppress(httpx.HTTPError, RuntimeError):  # the next receive or send says what is wrong
                self.client.SendNodeHeartbeat(request)
            stop.wait(_BEAT_SECONDS)


def _heartbeat(node_id: int) -> SendNodeHeartbeatRequest:
    return SendNodeHeartbeatRequest(node=Node(node_id=node_id), heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)


class _SignedRequests:
    """Sign each request with the node's key, as Flower's own nodes do; without the weight of Flower's own class."""

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        self._key, self._headers = key, _headers(key)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        timestamp = now().isoformat()
        signature = base64.b64encode(sign_message(self._key, timestamp.encode())).decode()
        signed = {TIMESTAMP_HEADER: timestamp, FLEET_HTTP_SIGNATURE_HEADER: signature}
        context.request.headers.update(self._headers | signed)
        return call_next(context)


def _headers(key: EllipticCurvePrivateKey) -> dict[str, str]:
    """Return what the headers of each request say of the node of a key."""
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public_key_to_bytes(key.public_key())).decode(),
        FLWR_PACKAGE_NAME_METADATA_KEY: package_name,
        FLWR_PACKAGE_VERSION_METADATA_KEY: package_version,
        FLWR_COMPONENT_NAME_METADATA_KEY: "SuperNode",
    }


def waiting(address: str, key: EllipticCurvePrivateKey, node_id: int) -> Requests:
    """Return what the node of a key sends to the SuperLink at `address` while it waits for a message."""

    def request(method: str, content: ProtobufMessage) -> tuple[str, str]:
        return f"/v1/fleet/{method}", content.SerializeToString().hex()

    return Requests(
        address=address,
        headers={"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE, **_headers(key)},
        timestamp=TIMESTAMP_HEADER,
        signature=FLEET_HTTP_SIGNATURE_HEADER,
        look=request("pull-messages", PullMessagesRequest(node=Node(node_id=node_id))),
        beat=request("send-node-heartbeat", _heartbeat(node_id)),
        leave=request("deactivate-node", DeactivateNodeRequest(node_id=node_id)),
        beat_seconds=_BEAT_SECONDS,
    )


@contextmanager
def connected(
    address: str,
    root_certificates: bytes | None,
    key: EllipticCurvePrivateKey,
    max_bytes: int,
    last_id: int | None = None,
    received: list[bytes] | None = None,
) -> Iterator[Link]:
    """Open a connection to the SuperLink at `address` ("host:port"), over TLS, as the node that `key` stands for.

    `root_certificates`: PEM of the authorities to trust; None: the system's. `last_id`: number that the node had; it
    goes on with it where the SuperLink has not noticed yet that the last process was killed. `received`: an answer with
    a message that the SuperLink gave already, to be taken out. Raises LinkError.
    """
    with _explained():
        client = FleetHttpClient.from_server_address(
            address, False, root_certificates, interceptors=[_SignedRequests(key)]
        )
    with client:
        public = public_key_to_bytes(key.public_key())
        activate = ActivateNodeRequest(public_key=public, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        with _explained():
            try:
                node_id = client.ActivateNode(activate).node_id
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.PRECONDITION_FAILED or last_id is None:
                    raise
                node_id = last_id
        link, stop = Link(node_id, client, max_bytes, [] if received is None else received), Event()
        Thread(target=link.beat, args=(stop,), daemon=True).start()
        try:
            yield link
        finally:
            stop.set()
            with suppress(httpx.HTTPError, RuntimeError):
                client.DeactivateNode(DeactivateNodeRequest(node_id=link.node_id))


def _within(most: int, tree: ObjectTree, pull: Callable[[str], bytes]) -> Callable[[str], bytes]:
    """Pull parts of a message until they exceed `most` bytes together. Raises LinkError beyond."""
    if sum(1 for _ in iterate_object_tree(tree)) > MAX_OBJECTS:
        raise LinkError(f"a message of more than {MAX_OBJECTS} parts is left unanswered")
    total, lock = 0, Lock()  # parts are pulled by several threads

    def bounded(object_id: str) -> bytes:
        nonlocal total
        content = pull(object_id)
        with lock:
            total += len(content)
            if total > most:
                raise LinkError(f"a message of more than {most} bytes is left unanswered: raise delivery.max_bytes")
        return content

    return bounded


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what Flower's client raises into a LinkError that says what to change."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        text = f"HTTP status {status}{_told(error.response)}"
        if status in (401, 403, httpx.codes.PRECONDITION_FAILED):
            text += (
                ": register this phone's public key (`flwr supernode register`), compare both clocks, and if the phone "
                "was killed, wait a minute"
            )
        raise LinkError(f"the SuperLink refuses: {text}") from None
    except (httpx.HTTPError, OSError) as error:
        raise LinkError(_reason(error)) from None
    except (ValueError, RuntimeError, TypeError, KeyError) as error:  # a message that is none
        raise LinkError(f"the SuperLink's answer cannot be read: {error!r}") from None


def _told(response: httpx.Response) -> str:
    """Return what Flower's error response says, where it is one."""
    try:
        return f", {str(json.loads(response.text)['detail'])[:200]}"
    except (ValueError, KeyError, TypeError):
        return ""


def _reason(error: Exception) -> str:
    """Say why a connection failed, from the chain of errors behind it."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = " ".join(map(str, chain))
    if "CERTIFICATE_VERIFY_FAILED" in text:
        dates = "not yet valid" in text or "expired" in text
        remedy = "set this phone's clock, or renew the certificate" if dates else "give the operator's CA certificate"
        return f"the SuperLink's certificate is not accepted ({_detail(chain)}): {remedy}"
    if any(isinstance(each, ssl.SSLError) for each in chain) or "WRONG_VERSION_NUMBER" in text:
        return f"what answers there does not speak TLS ({_detail(chain)}): start the SuperLink with its certificates"
    return f"the SuperLink cannot be reached ({_detail(chain)}): compare address and network"


def _detail(chain: list[BaseException]) -> str:
    return str(chain[0]) or type(chain[0]).__name__
