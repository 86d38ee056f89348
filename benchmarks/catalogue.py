"""What the catalogue of signed files costs beside nginx that serves the same files, and what an update brings."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import psutil
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import nn
from typer import Option

from benchmarks.command import SHARED, Benchmark
from benchmarks.deployment import free_port, write_certificates, write_node_key
from benchmarks.nginx import nginx
from benchmarks.options import Models
from benchmarks.progress import OnPhase
from benchmarks.record import Row
from benchmarks.submodels import random_base
from fedcaptor.client.download import download
from fedcaptor.client.node_key import node_key
from fedcaptor.common.catalogue.bytestream_pb2 import ReadRequest
from fedcaptor.common.catalogue.requests import READ, blob, metadata
from fedcaptor.common.errors import StateError
from fedcaptor.common.planner import Budget
from fedcaptor.common.submodel_file import encode
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.network import state_of
from fedcaptor.common.torch_engine.prune import Evidence
from fedcaptor.common.weights_file import content_of
from fedcaptor.deploy.programs import find
from fedcaptor.server.catalogue.store import Store

SERVERS = ("nginx", "catalogue", "catalogue behind nginx")
TRAINED = {"output layer": 1, "last three layers": 3, "all layers": 1000}
"""Last layers that are trained anew, by the name of an update."""
UPDATES = (*TRAINED, "submodel")
SHAPE, CLASSES = (3, 32, 32), (0, 3, 5)
OPERATOR = Ed25519PrivateKey.from_private_bytes(bytes(32))
SETTLED_SECONDS = 5.0
SMALL, LARGE, LARGE_DOWNLOADS = "small", "large", 4
REPEATS = 5
"""Rates are the best of so many: what else the machine does makes them worse."""


@dataclass(frozen=True, kw_only=True)
class Catalogue(Benchmark):
    """Downloads a second, bytes a second and memory of a connection beside nginx; bytes of an update.

    The client is curl, over TLS on loopback: for the catalogue it posts a signed read. Rows of servers that need nginx
    are left out where there is none.

    Example: python -m benchmarks catalogue --json benchmarks/results/catalogue.json
    """

    models: Models = "resnet20,vgg16"
    small: Annotated[int, Option(min=1, help="Bytes of the small file."), SHARED] = 100_000
    large: Annotated[int, Option(min=1, help="Bytes of the large file."), SHARED] = 64 << 20
    downloads: Annotated[int, Option(min=1, help="Downloads of the small file."), SHARED] = 400
    parallel: Annotated[int, Option(min=1, help="Of them at a time."), SHARED] = 8
    connections: Annotated[int, Option(min=1, help="Slow connections whose memory is measured."), SHARED] = 50
    macs: Annotated[float, Option(help="Most MACs of the submodel, as a ratio of the full model's."), SHARED] = 0.3
    seed: Annotated[int, Option(min=0, help="Files, weights and images follow from it."), SHARED] = 0

    def row_keys(self) -> list[Row]:
        servers = [{"server": name} for name in SERVERS]
        return servers + [{"model": model, "update": name} for model in self.models.split(",") for name in UPDATES]

    @contextmanager
    def measuring(self, on_phase: OnPhase) -> Iterator[Any]:
        with TemporaryDirectory(prefix="fedcaptor-catalogue-") as folder:
            served: dict[str, dict[str, float]] = {}

            def measure(key: Mapping[str, Any]) -> Mapping[str, Any] | None:
                if "update" in key:
                    return updated(Path(folder), key["model"], key["update"], self.macs, self.seed)
                if not served:
                    served.update(self._served(Path(folder), on_phase))
                return served.get(key["server"])

            yield measure

    def _served(self, folder: Path, on_phase: OnPhase) -> dict[str, dict[str, float]]:
        """Return figures of each server. All of them run, and take turns: none has the quieter machine."""
        rng = np.random.default_rng(self.seed)
        write_certificates(folder)
        write_node_key(folder / "phone.key")
        (folder / "phone.pub").rename(folder / "enrolled")
        for name, size in ((SMALL, self.small), (LARGE, self.large)):
            (folder / name).write_bytes(rng.bytes(size))
        Store(folder / "store").add([folder / SMALL, folder / LARGE], OPERATOR, 1)
        with ExitStack() as stack:
            servers = [
                _Server(stack, folder, name) for name in SERVERS if name == "catalogue" or find("nginx") is not None
            ]
            for done in range(REPEATS):
                on_phase("downloads", done, REPEATS)
                for server in servers:
                    server.download(SMALL, self.small, self.downloads, self.parallel)
                    server.download(LARGE, self.large, LARGE_DOWNLOADS, 1)
            on_phase("connections", 0, 1)
            return {server.name: server.figures() | server.held(self.connections) for server in servers}


class _Server:
    """A server of the folder's files, and what its downloads took."""

    def __init__(self, stack: ExitStack, folder: Path, name: str) -> None:
        self.name, self._folder = name, folder
        place = folder / name.replace(" ", "-")
        place.mkdir()
        port, self._processes = _start(stack, folder, place, name)
        self._asked = {file: _asked(folder, name, port, file) for file in (SMALL, LARGE)}
        self._rates: dict[str, list[float]] = {SMALL: [], LARGE: []}
        self._cpus: dict[str, list[float]] = {SMALL: [], LARGE: []}
        _downloads(folder, self._asked[SMALL], 20, 1, 1)  # what it does for the first time is not counted

    def download(self, file: str, size: int, count: int, parallel: int) -> None:
        """Download a file so many times, and keep the downloads a second and the CPU seconds of one."""
        before = self._cpu()
        self._rates[file].append(count / _downloads(self._folder, self._asked[file], count, parallel, size))
        self._cpus[file].append((self._cpu() - before) / count)

    def figures(self) -> dict[str, float]:
        """Return the best rates, and the median CPU."""
        return {
            "downloads_per_second": max(self._rates[SMALL]),
            "cpu_seconds_per_download": median(self._cpus[SMALL]),
            "large_downloads_per_second": max(self._rates[LARGE]),
            "cpu_seconds_per_large_download": median(self._cpus[LARGE]),
        }

    def held(self, count: int) -> dict[str, float]:
        """Return the bytes that each connection adds while its client hardly reads."""
        return {"bytes_per_connection": _held(self._folder, self._asked[LARGE], self._processes, count)}

    def _cpu(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)


def _start(stack: ExitStack, folder: Path, place: Path, server: str) -> tuple[int, list[psutil.Process]]:
    """Start a server of the folder's files: its port, and the processes that serve."""
    front, processes = free_port(), []
    if server == "nginx":
        block = f"location / {{ root {folder}; }}"
    else:
        tls = ("--certificate", folder / "server.pem", "--key", folder / "server.key") if server == "catalogue" else ()
        command: list[str | Path] = [
            Path(sys.executable).parent / "fedcaptor", "catalogue", "serve", "--folder", folder / "store", "--keys",
            folder / "enrolled", "--port", "0", "--metrics-port", "0", *tls,
        ]  # fmt: skip
        process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        stack.callback(process.terminate)
        assert process.stderr is not None
        found = re.search(r"port (\d+) serves", process.stderr.readline())
        assert found is not None
        processes, port = [psutil.Process(process.pid)], int(found[1])
        if server == "catalogue":
            return port, processes
        block = f"location = {READ} {{ grpc_pass grpc://127.0.0.1:{port}; grpc_buffer_size 128k; }}"
    running = psutil.Process(stack.enter_context(nginx(place, front, block)).pid)
    return front, [*processes, running, *running.children()]


def _asked(folder: Path, server: str, port: int, name: str) -> list[str]:
    """Return lines of curl's configuration for one download. A signed read may be repeated for some minutes."""
    common = [
        "silent",
        "fail",
        f'cacert = "{folder / "ca.pem"}"',
        'output = "/dev/null"',
        'write-out = "%{size_download}\\n"',
    ]
    if server == "nginx":
        return [*common, f'url = "https://localhost:{port}/{name}"']
    with (folder / name).open("rb") as file:
        resource = blob(hashlib.file_digest(file, "sha256").hexdigest())
    message, frame = ReadRequest(resource_name=resource).SerializeToString(), folder / f"{name}.frame"
    frame.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    headers = {"content-type": "application/grpc", "te": "trailers", "grpc-timeout": "600S"}
    for key, value in metadata(node_key(folder / "phone.key"), resource, 0, 0, int(time.time())):
        headers[key] = value if isinstance(value, str) else base64.b64encode(value).decode()
    lines = [f'header = "{key}: {value}"' for key, value in headers.items()]
    return [*common, f'url = "https://localhost:{port}{READ}"', f'data-binary = "@{frame}"', *lines]


def _curls(folder: Path, asked: list[str], count: int, parallel: int, *more: str) -> list[subprocess.Popen[str]]:
    """Start `parallel` processes of curl, each with one connection for its share of so many downloads."""
    started = []
    for number in range(parallel):
        file = folder / f"curl{number}"
        share = len(range(number, count, parallel))
        file.write_text("\nnext\n".join(["\n".join([*asked, *more])] * share))
        started.append(subprocess.Popen(["curl", "--config", file], stdout=subprocess.PIPE, text=True))
    return started


def _downloads(folder: Path, asked: list[str], count: int, parallel: int, size: int) -> float:
    """Return the seconds of so many downloads of `size` bytes."""
    start = time.perf_counter()
    came = [int(line) for one in _curls(folder, asked, count, parallel) for line in one.communicate()[0].split()]
    seconds = time.perf_counter() - start
    if len(came) != count or min(came) < size:
        raise StateError(f"{sum(each >= size for each in came)} of {count} downloads were whole: see {folder}")
    return seconds


def _held(folder: Path, asked: list[str], processes: list[psutil.Process], count: int) -> float:
    """Return the bytes that each connection adds to the processes while its client hardly reads."""
    before = sum(process.memory_info().rss for process in processes)
    slow = _curls(folder, asked, count, count, 'limit-rate = "1k"')
    try:
        time.sleep(SETTLED_SECONDS)
        if any(one.poll() is not None for one in slow):
            raise StateError(f"{sum(one.poll() is not None for one in slow)} of {count} slow downloads ended early")
        return float(sum(process.memory_info().rss for process in processes) - before) / count
    finally:
        for one in slow:
            one.kill()
            one.communicate()


def updated(folder: Path, model: str, update: str, macs: float, seed: int) -> dict[str, float]:
    """Return the bytes that a phone receives for a new version of a file, whole and by delta, and for its manifest."""
    old, new = versions(model, update, macs, seed)
    target, file = folder / f"{model}.installed", folder / f"{model}.safetensors"
    target.write_bytes(old)
    file.write_bytes(new)
    manifest = Store(folder / f"{model}-store").add([file], OPERATOR, 1)

    def read(resource: str, offset: int, limit: int) -> Iterator[bytes]:
        yield new[offset : offset + limit]

    found = download(manifest.files[0], target, read)
    found.file.unlink()
    envelope = len(manifest.sealed(OPERATOR))
    return {"whole_bytes": len(new), "delta_bytes": found.received, "manifest_bytes": envelope}


def versions(model: str, update: str, macs: float, seed: int) -> tuple[bytes, bytes]:
    """Return a file before and after an update. Networks have random weights, which no byte count depends on."""
    base = random_base(model, SHAPE, seed)
    if update == "submodel":
        return submodel(base, macs, seed), submodel(base, macs, seed + 1)
    before = content_of(base.state, {"accuracy": "0.9"})
    layers = [module for module in base.module.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    train(base.module, layers[max(len(layers) - TRAINED[update], 0) :], seed)
    return before, content_of(state_of(base.module), {"accuracy": "0.91"})


def submodel(base: BaseModel, macs: float, seed: int) -> bytes:
    """Return a cluster's submodel: pruned for classes by the reference images of a round."""
    images = np.random.default_rng(seed).integers(256, size=(60, *SHAPE[1:], SHAPE[0]), dtype=np.uint8)
    frozen = replace(base, module=base.rebuild(base.state))
    made = Evidence.gather(frozen, np.array(CLASSES), images, seed=seed).submodel(Budget(macs=macs))
    return encode(state_of(made.module)).tobytes()


def train(network: nn.Module, layers: Sequence[nn.Module], seed: int) -> None:
    """Train these layers by a few steps on random images; nothing else of the network changes."""
    weights = [weight for layer in layers for weight in layer.parameters()]
    if not weights:
        return
    torch.manual_seed(seed)
    network.eval()
    optimiser = torch.optim.SGD(weights, lr=0.001)
    for _ in range(3):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(torch.randn(16, *SHAPE)), torch.randint(10, (16,)))
        loss.backward()
        optimiser.step()
