"""The catalogue as a process, alone and behind nginx, and a resident phone that fetches before it checks in."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.deployment import free_port
from benchmarks.nginx import nginx
from fedcaptor.client.fetch import fetch
from fedcaptor.deploy.programs import find
from fedcaptor.server.catalogue.service import ByteStream
from fedcaptor.server.catalogue.store import Store
from fedcaptor.simulations.runner import SHIPPED
from tests.catalogue.serving import OPERATOR, Served, prepare, random_file, weights
from tests.catalogue.test_fetch import no_sleep, phone

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "catalogue.md").read_text()
FRONT, *_ = re.findall(r"^```nginx\n(.*?)^```", PAGE, re.M | re.S)


@contextmanager
def process(folder: Path, *options: object) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """`fedcaptor catalogue serve` over a prepared folder: the process, its port and the URL of its metrics."""
    command = [
        Path(sys.executable).parent / "fedcaptor", "catalogue", "serve", "--folder", folder / "store", "--keys",
        folder / "enrolled", "--port", "0", "--metrics-port", "0", *options,
    ]  # fmt: skip
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, cwd=ROOT) as running:
        assert running.stderr is not None
        try:
            found = re.search(r"port (\d+) serves (\d+) enrolled phones, metrics: (\S+)", running.stderr.readline())
            assert found
            assert found[2] == "1"
            yield running, int(found[1]), found[3]
        finally:
            running.terminate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = prepare(tmp_path)
    files = [weights(tmp_path / "base.safetensors", 1), random_file(tmp_path / "network.onnx", 3_000_000)]
    store.add(files, OPERATOR, 1)
    return tmp_path


def at(folder: Path, port: int) -> Path:
    """A phone that fetches at a port."""
    return phone(Served(folder, port, ByteStream.__new__(ByteStream)))


def test_it_serves_counts_and_ends(folder: Path) -> None:
    tls = ("--certificate", folder / "server.pem", "--key", folder / "server.key")
    with process(folder, *tls) as (running, port, url):
        assert len(fetch(at(folder, port))) == 2
        metrics = urllib.request.urlopen(url, timeout=30).read().decode()
        assert 'fedcaptor_catalogue_requests_total{code="OK",method="Read"} 3.0' in metrics
        assert "fedcaptor_catalogue_failures_total 0.0" in metrics
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--host", "0.0.0.0"), "without TLS"),
        (("--certificate", "server.pem"), "belong together"),
        (("--keys", "none"), "none does not exist"),
        (("--folder", "empty"), "is no catalogue"),
    ],
)
def test_settings_that_cannot_work_are_told(folder: Path, options: tuple[str, str], text: str) -> None:
    (folder / "empty").mkdir()
    given = {"--folder": "store", "--keys": "enrolled", "--port": "0", "--metrics-port": "0", options[0]: options[1]}
    words = [word for pair in given.items() for word in pair]
    done = subprocess.run(
        [Path(sys.executable).parent / "fedcaptor", "catalogue", "serve", *words], cwd=folder, text=True,
        capture_output=True, timeout=100, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode != 0
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(find("nginx") is None, reason="nginx is neither on PATH nor in .tools")
def test_phones_fetch_through_nginx_and_nothing_else_passes(folder: Path) -> None:
    front = free_port()
    with (
        process(folder) as (running, port, _),
        nginx(folder, front, FRONT.replace("127.0.0.1:8001", f"127.0.0.1:{port}")) as proxy,
    ):
        assert len(fetch(at(folder, front), no_sleep)) == 2
        assert (folder / "phone" / "network.onnx").read_bytes() == (folder / "network.onnx").read_bytes()
        roots = (folder / "ca.pem").read_bytes()
        with grpc.secure_channel(f"localhost:{front}", grpc.ssl_channel_credentials(roots)) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert proxy.poll() is None
        assert running.poll() is None


@pytest.mark.long
def test_a_resident_phone_fetches_before_it_checks_in(folder: Path) -> None:
    """Nobody answers as SuperLink: that it tries to connect shows that it has its files."""
    (folder / "base.safetensors").write_bytes(SHIPPED.read_bytes())
    Store(folder / "store").add([folder / "base.safetensors"], OPERATOR, 2)
    tls = ("--certificate", folder / "server.pem", "--key", folder / "server.key")
    with process(folder, *tls) as (_, port, _):
        file = at(folder, port)
        more = f'superlink = "localhost:{free_port()}"\nimages = "photos"\nmodel = "small-cnn"\n'
        file.write_text(file.read_text() + more)
        command = [Path(sys.executable).parent / "fedcaptor", "phone", "run", "--config", file]
        with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT) as resident:
            log = folder / "phone" / "own" / "phone.log"
            while not (log.exists() and "SuperLink cannot be reached" in log.read_text()):
                assert resident.poll() is None
                time.sleep(0.1)
            resident.terminate()
            assert resident.wait(30) == 0
    text = log.read_text()
    assert text.index("fetched") < text.index("SuperLink cannot be reached")
    assert (folder / "phone" / "base.safetensors").read_bytes() == SHIPPED.read_bytes()
