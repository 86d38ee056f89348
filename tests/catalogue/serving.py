"""A catalogue that serves over TLS on loopback, phones that may read from it, and a network that cuts connections."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from safetensors.numpy import save_file

from benchmarks.deployment import write_certificates, write_node_key
from fedcaptor.server.catalogue.access import Access
from fedcaptor.server.catalogue.enrolled import EnrolledKeys
from fedcaptor.server.catalogue.service import ByteStream, serving
from fedcaptor.server.catalogue.store import Store

OPERATOR = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = OPERATOR.public_key().public_bytes_raw()


@dataclass(frozen=True)
class Served:
    """`folder` has `ca.pem`, `operator.pem`, `phone.key`, `enrolled` and `store`."""

    folder: Path
    port: int
    service: ByteStream

    @property
    def roots(self) -> bytes:
        return (self.folder / "ca.pem").read_bytes()

    def count(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(f"fedcaptor_catalogue_{name}_total", labels) or 0.0


def prepare(folder: Path) -> Store:
    """Keys and certificates, and a store that has nothing yet."""
    folder.mkdir(parents=True, exist_ok=True)
    write_certificates(folder)
    write_node_key(folder / "phone.key")
    (folder / "enrolled").write_bytes(
        b"# phones\n" + (folder / "phone.pub").read_bytes().strip() + b" somebody@phone\n"
    )
    private = OPERATOR.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "operator.pem").write_bytes(private)
    public = OPERATOR.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "operator.pub.pem").write_bytes(public)
    return Store(folder / "store")


@contextmanager
def served(folder: Path, most: int = 256) -> Iterator[Served]:
    """Serve the store of a prepared folder from an event loop in a thread."""
    service = ByteStream(Store(folder / "store"), Access(EnrolledKeys(folder / "enrolled"), time.time))
    pair = (folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes()
    ready, ended = threading.Event(), threading.Event()
    port: list[int] = []

    async def main() -> None:
        async with serving(service, "127.0.0.1", 0, grpc.ssl_server_credentials([pair]), most) as bound:
            port.append(bound)
            ready.set()
            while not ended.is_set():
                await asyncio.sleep(0.02)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        assert ready.wait(30)
        yield Served(folder, port[0], service)
    finally:
        ended.set()
        thread.join(30)
    assert not thread.is_alive()


@contextmanager
def cutting(port: int, budgets: Iterator[int]) -> Iterator[tuple[int, list[int]]]:
    """Pass connections on to `port`, each until the server sent so many bytes; gives the own port and those used."""
    listener, used = socket.create_server(("127.0.0.1", 0)), []

    def answer(client: socket.socket, budget: int) -> None:
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", port)) as server:
            threading.Thread(target=up, args=(client, server), daemon=True).start()
            while budget > 0 and (content := server.recv(min(budget, 1 << 16))):
                client.sendall(content)
                budget -= len(content)
            for end in (client, server):
                end.shutdown(socket.SHUT_RDWR)

    def up(client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while content := client.recv(1 << 16):
                server.sendall(content)
            server.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                used.append(next(budgets))
                threading.Thread(target=answer, args=(client, used[-1]), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], used
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def weights(path: Path, seed: int, changed: int = 0, layers: int = 6, size: int = 40_000) -> Path:
    """A safetensors file of random layers, of which the last `changed` have other values than those of the seed."""
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    tensors = {}
    for number in range(layers):
        values = [one.standard_normal(size).astype(np.float16) for one in (rng, other)]
        tensors[f"layer{number}.weight"] = values[number >= layers - changed]
    save_file(tensors, path, {"seed": str(seed)})
    return path


def random_file(path: Path, size: int, seed: int = 0) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path
