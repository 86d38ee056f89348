"""The front's limits hold for each address of its own, and what it refuses is in its log."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.deployment import free_port
from fedcaptor.common.config import load_config
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.processes import is_listened_on
from fedcaptor.deploy.render import render
from tests.programs import program
from tests.waiting import until

pytestmark = pytest.mark.slow

REQUESTS, CONNECTIONS = 2, 3
PATH = "/v1/fleet/pull-messages"


@pytest.fixture(scope="module")
def front(made: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A front alone, before a SuperLink that takes connections and never answers."""
    root = Path(shutil.copytree(made.root, tmp_path_factory.mktemp("front") / "own"))
    with socket.create_server(("127.0.0.1", 0), backlog=128) as silent:
        limits = {
            "port": free_port(),
            "superlink_port": silent.getsockname()[1],
            "requests_per_second": REQUESTS,
            "connections": CONNECTIONS,
        }
        config = load_config(root / "deployment.toml", [f"deployment.{key}={value}" for key, value in limits.items()])
        front = Deployment(root, config)
        render(front)
        command = [program("nginx"), "-c", front.services / "nginx.conf", "-e", "stderr"]
        with (front.logs / "front.log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
            try:
                assert until(lambda: is_listened_on(front.settings.port), 20), process.poll()
                yield front
            finally:
                process.terminate()


def asked(front: Deployment, source: str, stack: ExitStack) -> ssl.SSLSocket:
    """A connection from this address that has sent one request."""
    address = "127.0.0.1", front.settings.port
    raw = socket.create_connection(address, timeout=20, source_address=(source, 0))
    context = ssl.create_default_context(cafile=front.roots)
    talk = stack.enter_context(context.wrap_socket(raw, server_hostname="localhost"))
    talk.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
    return talk


def answer(talk: ssl.SSLSocket) -> int:
    return int(talk.recv(4096).split()[1])


def is_waiting(talk: ssl.SSLSocket, seconds: float = 0.2) -> bool:
    """Whether the front holds the request: it passed it on, and nobody has answered."""
    talk.settimeout(seconds)
    try:
        return not talk.recv(1)
    except TimeoutError:
        return True


def test_an_address_has_so_many_connections_at_a_time_and_others_have_their_own(front: Deployment) -> None:
    with ExitStack() as stack:
        held = [asked(front, "127.0.0.2", stack) for _ in range(CONNECTIONS)]
        assert all(map(is_waiting, held))
        assert answer(asked(front, "127.0.0.2", stack)) == 429
        assert is_waiting(asked(front, "127.0.0.3", stack))
        held[0].close()
        assert until(lambda: is_waiting(asked(front, "127.0.0.2", stack)), 20)
    assert f'127.0.0.2 "POST {PATH} HTTP/1.1" 429' in (front.logs / "front.log").read_text()


def test_an_address_has_so_many_requests_a_second_and_others_have_their_own(front: Deployment) -> None:
    """One that is refused is so at once; the SuperLink has the others, and they are waiting."""
    burst, refused = 1 + 2 * REQUESTS, []
    for _ in range(5 * burst):
        with ExitStack() as stack:
            refused.append(not is_waiting(asked(front, "127.0.0.4", stack), 0.02))
    assert not any(refused[:burst])
    assert any(refused[burst:])
    with ExitStack() as stack:
        assert is_waiting(asked(front, "127.0.0.5", stack))
