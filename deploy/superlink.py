"""Speak with a deployment's SuperLink on loopback: enrol phones, start runs, follow them.

The one module here that touches Flower's internals, which are pinned to a minor release.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import Status, SubStatus
from flwr.common.serde import fab_to_proto, user_config_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.proto.run_pb2 import Run
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedcaptor.common.assets import asset
from fedcaptor.common.errors import ConfigError, StateError
from fedcaptor.deploy.folder import Deployment

_GONE = "unregistered"


class SuperLinkError(StateError):
    """Raised where the SuperLink does not answer or refuses; the text says what to do."""


class SuperLinkAwayError(SuperLinkError):
    """Raised where nobody answers: it may be starting again."""


@dataclass(frozen=True)
class Node:
    """A phone as the SuperLink knows it. `status`: registered, online, offline or unregistered."""

    node_id: int
    public_key: bytes
    status: str


@dataclass(frozen=True)
class FlowerRun:
    """A run as the SuperLink knows it. `stopped`: by `flwr stop`."""

    run_id: int
    ended: bool
    completed: bool
    stopped: bool
    details: str


class SuperLink:
    """The SuperLink of a deployment; each call may raise SuperLinkError."""

    def __init__(self, client: ControlHttpClient) -> None:
        self._client = client

    def nodes(self) -> list[Node]:
        """List the phones that are registered."""
        with _explained():
            listed = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [Node(n.node_id, n.public_key, n.status) for n in listed if n.status != _GONE]

    def register(self, public_key: bytes) -> None:
        """Let the phone with this key (DER) connect."""
        with _explained():
            self._client.RegisterNode(RegisterNodeRequest(public_key=public_key))

    def unregister(self, node: Node) -> None:
        """Shut a phone out."""
        with _explained():
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))

    def start(self, run_config: Mapping[str, bool | float | int | str]) -> int:
        """Start the app of deployments with a run configuration; return the run's number."""
        bundle = build_fab_from_disk(asset("deploy/flower-app"))
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        request = StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(run_config)))
        with _explained():
            return int(self._client.StartRun(request).run_id)

    def run(self, run_id: int) -> FlowerRun | None:
        """Tell how a run is; None for one that the SuperLink does not know, as its database is another one."""
        with _explained():
            found = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict.get(run_id)
        return None if found is None else _run(found)

    def unfinished(self, name: str) -> FlowerRun | None:
        """Return the run of this name (`name` of its configuration) that has not ended, None where there is none."""
        with _explained():
            listed = self._client.ListRuns(ListRunsRequest()).run_dict.values()
        named = [run for run in listed if user_config_from_proto(run.override_config).get("name") == name]
        return next((run for run in map(_run, named) if not run.ended), None)

    def log(self, run_id: int, after: float) -> Iterator[tuple[str, float]]:
        """Give what the run has logged after a time, and times to go on from; it ends when the connection does."""
        with _explained():
            for part in self._client.StreamLogs(StreamLogsRequest(run_id=run_id, after_timestamp=after)):
                yield part.log_output, part.latest_timestamp


def _run(found: Run) -> FlowerRun:
    status = found.status
    ended, how = status.status == Status.FINISHED, status.sub_status
    return FlowerRun(
        found.run_id, ended, ended and how == SubStatus.COMPLETED, how == SubStatus.STOPPED, status.details
    )


@contextmanager
def connected(deployment: Deployment) -> Iterator[SuperLink]:
    """Open a connection to the deployment's SuperLink."""
    with connected_at(deployment.settings.superlink_port, deployment.authority) as superlink:
        yield superlink


@contextmanager
def connected_at(port: int, authority: Path) -> Iterator[SuperLink]:
    """Open a connection to a SuperLink on loopback, whose certificate an authority (PEM file) issued."""
    version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    address, roots = f"127.0.0.1:{port}", authority.read_bytes()
    with ControlHttpClient.from_server_address(address, False, roots, interceptors=[version]) as client:
        yield SuperLink(client)


def enrol(deployment: Deployment) -> tuple[int, int]:
    """Make the SuperLink's list that of `enrolled/`; return how many phones were added and shut out.

    A SuperLink that lost its database thus knows all phones again.
    """
    wanted = {der_of(key, name) for name, key in deployment.enrolled_keys().items()}
    with connected(deployment) as superlink:
        known = {node.public_key: node for node in superlink.nodes()}
        for key in sorted(wanted - set(known)):
            superlink.register(key)
        for key in sorted(set(known) - wanted):
            superlink.unregister(known[key])
    return len(wanted - set(known)), len(set(known) - wanted)


def der_of(public_key: bytes, name: str) -> bytes:
    """Return a node's public key as the SuperLink has it, from OpenSSH's format; `name` is said in the error.

    Raises ConfigError where it is none.
    """
    try:
        key = load_ssh_public_key(public_key.strip())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in ("secp256r1", "secp384r1", "secp521r1"):
        raise ConfigError(f"{name} is no public ECDSA key: give the .pub file of `ssh-keygen -t ecdsa -b 384`")
    return public_key_to_bytes(key)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        reason = error.response.text[:300] or error.response.status_code
        raise SuperLinkError(f"the SuperLink refuses: {reason}") from None
    except (httpx.HTTPError, RuntimeError) as error:
        raise SuperLinkAwayError(f"the SuperLink does not answer ({error}): see `fedcaptor deploy status`") from None
