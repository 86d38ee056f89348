"""Only enrolled phones read, only what there is, and a slow one costs no memory."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fedcaptor.client import catalogue as catalogue_module
from fedcaptor.client.catalogue import Catalogue, connected
from fedcaptor.client.node_key import node_key
from fedcaptor.common.catalogue.bytestream_pb2 import ReadRequest, ReadResponse
from fedcaptor.common.catalogue.requests import LATEST, READ, SIGNATURE, TIME, blob, metadata
from fedcaptor.common.errors import ConfigError, LinkError
from fedcaptor.server.catalogue.service import PIECE, serving
from tests.catalogue.serving import OPERATOR, PUBLIC, Served, prepare, random_file, served

pytestmark = pytest.mark.slow

SIZE = 1_500_000
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    prepare(folder).add([random_file(folder / "base", SIZE), random_file(folder / "large", 48 << 20, 1)], OPERATOR, 1)
    with served(folder) as running:
        yield running


@pytest.fixture
def phone(server: Served) -> Iterator[Catalogue]:
    with connected(f"localhost:{server.port}", server.roots, node_key(server.folder / "phone.key")) as catalogue:
        yield catalogue


def digest_of(server: Served, name: str = "base") -> str:
    manifest = server.service.store.manifest(PUBLIC)
    entry = manifest and manifest.file(name)
    assert entry
    return entry.digest


def status(
    catalogue: Catalogue, request: ReadRequest, proof: tuple[tuple[str, str | bytes], ...] | None
) -> grpc.RpcError:
    """The error that a raw read ends with."""
    method = catalogue.channel.unary_stream(READ, ReadRequest.SerializeToString, ReadResponse.FromString)
    with pytest.raises(grpc.RpcError) as caught:
        list(method(request, metadata=proof, timeout=30))
    return caught.value


def test_files_and_ranges_come(server: Served, phone: Catalogue) -> None:
    content, resource = (server.folder / "base").read_bytes(), blob(digest_of(server))
    assert b"".join(phone.read(resource)) == content
    for offset, limit in ((0, 1), (SIZE - 1, 5), (1000, 300_000), (SIZE, 0), (7, (1 << 63) - 1)):
        assert b"".join(phone.read(resource, offset, limit)) == content[offset:][: limit or None]
    manifest, _ = phone.manifest(PUBLIC)
    assert [entry.name for entry in manifest.files] == ["base", "large"]


def test_what_was_sent_is_counted(server: Served, phone: Catalogue) -> None:
    before = server.count("sent_bytes"), server.count("resumes"), server.count("requests", method="Read", code="OK")
    resource = blob(digest_of(server))
    assert sum(map(len, phone.read(resource, SIZE - 1000))) == 1000
    assert sum(map(len, phone.read(resource, 10, 500))) == 500
    after = server.count("sent_bytes"), server.count("resumes"), server.count("requests", method="Read", code="OK")
    assert [b - a for a, b in zip(before, after, strict=True)] == [1500, 1, 2]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (ReadRequest(resource_name=blob("0" * 64)), grpc.StatusCode.NOT_FOUND),
        (ReadRequest(resource_name="blobs/../latest.json"), grpc.StatusCode.INVALID_ARGUMENT),
        (ReadRequest(resource_name="../../../etc/passwd"), grpc.StatusCode.INVALID_ARGUMENT),
        (ReadRequest(resource_name="/etc/passwd"), grpc.StatusCode.INVALID_ARGUMENT),
        (ReadRequest(resource_name="blobs/\0"), grpc.StatusCode.INVALID_ARGUMENT),
        (ReadRequest(resource_name=LATEST, read_offset=1 << 62), grpc.StatusCode.OUT_OF_RANGE),
        (ReadRequest(resource_name=LATEST, read_offset=-1), grpc.StatusCode.OUT_OF_RANGE),
        (ReadRequest(resource_name=LATEST, read_limit=-1), grpc.StatusCode.INVALID_ARGUMENT),
        (ReadRequest(resource_name="x" * 5000), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
def test_what_there_is_not_is_refused(phone: Catalogue, request_: ReadRequest, code: grpc.StatusCode) -> None:
    asked = request_.resource_name, request_.read_offset, request_.read_limit
    assert status(phone, request_, metadata(phone.key, *asked, int(time.time()))).code() == code


def test_strangers_learn_nothing_and_the_log_says_why(
    server: Served, phone: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    now, resource = int(time.time()), blob(digest_of(server))
    request = ReadRequest(resource_name=resource)
    own = dict(metadata(phone.key, resource, 0, 0, now))
    stranger = ec.generate_private_key(ec.SECP384R1())
    wrong = "its signature is of another request or key"
    attempts: list[tuple[str, Any]] = [
        ("no key, time and signature", None),
        ("no key, time and signature", (own | {TIME: "-1"}).items()),
        ("no key, time and signature", (own | {TIME: "9" * 40}).items()),
        ("its key is not enrolled", metadata(stranger, resource, 0, 0, now)),
        ("clock is -4", metadata(phone.key, resource, 0, 0, now - 400)),
        ("clock is +", metadata(phone.key, resource, 0, 0, now + 400)),
        (wrong, metadata(phone.key, LATEST, 0, 0, now)),  # replayed for another resource or range
        (wrong, metadata(phone.key, resource, 5, 0, now)),
        (wrong, metadata(phone.key, resource, 0, 5, now)),
        (wrong, (own | {TIME: str(now - 1)}).items()),
        (wrong, (own | {SIGNATURE: b"x" * 100}).items()),
        (wrong, (own | {SIGNATURE: dict(metadata(stranger, resource, 0, 0, now))[SIGNATURE]}).items()),
    ]
    answers = set()
    for reason, proof in attempts:
        for asked in (request, ReadRequest(resource_name=blob("0" * 64))):  # one that is there, one that is not
            caplog.clear()
            error = status(phone, asked, proof and tuple(proof))
            answers.add((error.code(), error.details(), tuple(error.trailing_metadata() or ())))
            (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
            assert reason in line or asked is not request
            assert str(own["fedcaptor-key"]) not in line
    assert answers == {(grpc.StatusCode.UNAUTHENTICATED, "refused", ())}


def test_phones_are_enrolled_and_removed_while_it_serves(server: Served) -> None:
    fresh = ec.generate_private_key(ec.SECP384R1())
    from fedcaptor.common.catalogue.requests import KEY_TYPE, public_text

    file = server.folder / "enrolled"
    before = file.read_text()
    with connected(f"localhost:{server.port}", server.roots, fresh) as catalogue:
        with pytest.raises(LinkError, match="have this phone's public key enrolled"):
            catalogue.manifest(PUBLIC)
        file.write_text(before + f"{KEY_TYPE} {public_text(fresh.public_key())}\n")
        assert catalogue.manifest(PUBLIC)
        file.write_text(before + "a slip of the pen\n")
        assert catalogue.manifest(PUBLIC)
        file.write_text(before)
        with pytest.raises(LinkError):
            catalogue.manifest(PUBLIC)


def test_a_wrong_authority_is_not_talked_to(server: Served, phone: Catalogue) -> None:
    with (
        connected(f"localhost:{server.port}", None, phone.key) as catalogue,
        pytest.raises(LinkError, match="certificates"),
    ):
        catalogue.manifest(PUBLIC)


def test_health_and_reflection_tell_that_it_serves(phone: Catalogue) -> None:
    health = health_pb2_grpc.HealthStub(phone.channel)
    for name in ("", "google.bytestream.ByteStream"):
        found = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)
        assert found.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(phone.channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    (answer,) = stub.ServerReflectionInfo(asked, timeout=30)
    assert "google.bytestream.ByteStream" in {one.name for one in answer.list_services_response.service}


def test_nobody_writes(phone: Catalogue) -> None:
    write = phone.channel.stream_unary("/google.bytestream.ByteStream/Write")
    with pytest.raises(grpc.RpcError) as caught:
        write(iter([b""]), timeout=30)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_taken_port_is_said_to_be(server: Served) -> None:
    import asyncio

    async def second() -> None:
        async with serving(server.service, "127.0.0.1", server.port, None, 1):
            pass

    with pytest.raises(ConfigError, match=r"cannot listen on .* give another port"):
        asyncio.run(second())


def test_a_slow_phone_is_cut_off_by_its_deadline_and_goes_on(
    server: Served, phone: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource, ended = blob(digest_of(server, "large")), {"method": "Read", "code": "CANCELLED"}
    before = server.count("requests", **ended)
    with monkeypatch.context() as hurry:
        hurry.setattr(catalogue_module, "MOST_SECONDS", 1)
        reading = phone.read(resource)
        got = bytearray(next(reading))
    while server.count("requests", **ended) == before:  # the server gave up, though the phone does not read
        time.sleep(0.05)
    with pytest.raises(LinkError, match="DEADLINE_EXCEEDED"):
        got.extend(b"".join(reading))
    got += b"".join(phone.read(resource, len(got)))
    assert got == (server.folder / "large").read_bytes()


@pytest.mark.parametrize("timeout", [None, 700])
def test_a_read_without_a_deadline_is_refused(phone: Catalogue, timeout: float | None) -> None:
    method = phone.channel.unary_stream(READ, ReadRequest.SerializeToString, ReadResponse.FromString)
    proof = metadata(phone.key, LATEST, 0, 0, int(time.time()))
    with pytest.raises(grpc.RpcError, match="needs a deadline"):
        list(method(ReadRequest(resource_name=LATEST), metadata=proof, timeout=timeout))


def test_a_hundred_slow_phones_hold_a_piece_each(server: Served) -> None:
    """48 MiB are asked for a hundred times and hardly read: the server must not buffer them."""
    key, resource, process = node_key(server.folder / "phone.key"), blob(digest_of(server, "large")), psutil.Process()
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.http2.lookahead_bytes", 65_536),
        ("grpc.http2.bdp_probe", 0),
    ]
    credentials, before = grpc.ssl_channel_credentials(server.roots), process.memory_info().rss
    channels = [grpc.secure_channel(f"localhost:{server.port}", credentials, options) for _ in range(100)]
    calls = [Catalogue(channel, key).read(resource) for channel in channels]
    try:
        assert sum(len(next(call)) for call in calls) == 100 * PIECE
        seen = server.count("sent_bytes")
        while (now := server.count("sent_bytes")) > seen:
            seen = now
            time.sleep(0.5)
        grown = process.memory_info().rss - before
        assert grown < 200 << 20, f"{grown >> 20} MiB for clients and server of 100 connections"
    finally:
        for call, channel in zip(calls, channels, strict=True):
            call.close()
            channel.close()


def test_a_hundred_phones_at_a_time_get_all(server: Served) -> None:
    key, content = node_key(server.folder / "phone.key"), (server.folder / "base").read_bytes()
    resource, process, peak, done = blob(digest_of(server)), psutil.Process(), [0], threading.Event()
    credentials = grpc.ssl_channel_credentials(server.roots)

    def one(number: int) -> bool:
        with grpc.secure_channel(f"localhost:{server.port}", credentials, OWN_CONNECTION) as channel:
            return b"".join(Catalogue(channel, key).read(resource)) == content

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    with ThreadPoolExecutor(100) as pool:
        before = process.memory_info().rss
        watcher.start()
        assert all(pool.map(one, range(100)))
        done.set()
    assert peak[0] - before < 100 * 2 * SIZE + (200 << 20)  # what the clients hold themselves, twice while they join it


def test_reads_beyond_the_most_are_told_to_come_again(tmp_path: Path) -> None:
    prepare(tmp_path).add([random_file(tmp_path / "base", 24 << 20)], OPERATOR, 1)
    with served(tmp_path, most=2) as server:
        key = node_key(tmp_path / "phone.key")
        with connected(f"localhost:{server.port}", server.roots, key) as catalogue:
            held = [catalogue.read(blob(digest_of(server))) for _ in range(2)]
            for reading in held:
                next(reading)
            with pytest.raises(LinkError, match="RESOURCE_EXHAUSTED") as caught:
                catalogue.manifest(PUBLIC)
            assert caught.value.again
            for reading in held:
                reading.close()


def test_a_file_that_the_disk_lost_is_a_failure_of_the_server(tmp_path: Path) -> None:
    prepare(tmp_path).add([random_file(tmp_path / "base", 24 << 20)], OPERATOR, 1)
    with (
        served(tmp_path) as server,
        connected(f"localhost:{server.port}", server.roots, node_key(tmp_path / "phone.key")) as catalogue,
    ):
        reading = catalogue.read(blob(digest_of(server)))
        next(reading)
        path = server.service.store.path(blob(digest_of(server)))
        assert path
        path.write_bytes(b"short")
        with pytest.raises(LinkError, match="INTERNAL"):
            list(reading)
        assert server.count("failures") == 1
