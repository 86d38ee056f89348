"""A resident process that rests: what wakes it, what it brings back, and how it ends. Real processes, real TLS."""

from __future__ import annotations

import http.server
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Thread

import pytest

from benchmarks.deployment import write_certificates, write_node_key

pytestmark = pytest.mark.slow

PROGRAM = """
import os, sys, time
from fedcaptor.client.process_lock import acquire
from fedcaptor.client.resting import ENDING, Requests, Rest, woken
from pathlib import Path

folder, port = Path(sys.argv[1]), sys.argv[2]
rest = woken()
if rest is None:
    requests = port and Requests("localhost:" + port, {"who": "me"}, "made", "signed", ("/look", "01ff"), ("/beat", ""),
                                 ("/leave", "02"), 1000.0)
    lock = acquire(folder / "lock")
    rest = Rest(requests or None, str(folder / "ca.pem"), str(folder / "key"), lock, 0, 0.02, sys.argv[3], 0.0)
    rest.begin(lambda: False)
print(rest.answer, rest.worked, acquire(folder / "lock"), os.getpid(), "flwr" in sys.modules)
os.close(rest.lock)
os.close(acquire(folder / "lock"))
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[int, Queue[tuple[str, bytes]], Queue[bytes]]]:
    """A server on loopback: its port, the requests that it got, and its answers to looks, empty where none is left."""
    write_certificates(tmp_path)
    write_node_key(tmp_path / "key")
    got: Queue[tuple[str, bytes]] = Queue()
    answers: Queue[bytes] = Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.headers["who"] == "me"
            assert self.headers["made"]
            assert self.headers["signed"]
            got.put((self.path, body))
            answer = b"" if self.path != "/look" or answers.empty() else answers.get()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_port, got, answers
    server.shutdown()
    server.server_close()


def rests(folder: Path, port: int | str, condition: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(port), condition]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def test_a_message_wakes_the_same_process_which_still_has_its_lock(
    tmp_path: Path, served: tuple[int, Queue[tuple[str, bytes]], Queue[bytes]]
) -> None:
    port, got, answers = served
    for answer in (b"", b"a message"):
        answers.put(answer)
    process = rests(tmp_path, port)
    assert process.communicate(timeout=60)[0] == f"b'a message' True None {process.pid} False\n"
    assert process.returncode == 0
    assert list(got.queue) == [("/beat", b""), ("/look", b"\x01\xff"), ("/look", b"\x01\xff")]


def test_what_is_amiss_wakes_it_without_a_message(
    tmp_path: Path, served: tuple[int, Queue[tuple[str, bytes]], Queue[bytes]]
) -> None:
    """Nobody listens at port 1."""
    process = rests(tmp_path, 1)
    assert process.communicate(timeout=60)[0] == f"b'' False None {process.pid} False\n"


def test_a_condition_that_holds_wakes_it_and_one_that_fails_does(
    tmp_path: Path, served: tuple[int, Queue[tuple[str, bytes]], Queue[bytes]]
) -> None:
    file = tmp_path / "charging"
    offline = rests(tmp_path, "", f"touch {tmp_path}/asked; test -e {file}")
    while not (tmp_path / "asked").exists():
        time.sleep(0.05)
    assert offline.poll() is None
    file.touch()
    assert offline.communicate(timeout=60)[0] == f"b'' True None {offline.pid} False\n"
    online = rests(tmp_path, served[0], "false")
    assert online.communicate(timeout=60)[0] == f"b'' False None {online.pid} False\n"
    assert served[1].empty()


def test_sigterm_takes_leave(tmp_path: Path, served: tuple[int, Queue[tuple[str, bytes]], Queue[bytes]]) -> None:
    port, got, _ = served
    process = rests(tmp_path, port)
    assert got.get(timeout=60) == ("/beat", b"")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == ("", None)
    assert process.returncode == 0
    assert got.queue[-1] == ("/leave", b"\x02")
