"""Real processes of a deployment on loopback: certificates, node keys, a SuperLink with TLS, and phones."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterable
from pathlib import Path

import psutil

from fedcaptor._graph_export import export_graph
from fedcaptor.client.node_key import make_node_key
from fedcaptor.common.assets import asset
from fedcaptor.deploy.certificates import make_authority, make_server_certificate
from fedcaptor.deploy.phones import write_images
from fedcaptor.deploy.superlink import connected_at, der_of
from fedcaptor.simulations.ray_engine import QUIET
from fedcaptor.simulations.runner import SHIPPED


def write_certificates(folder: Path) -> None:
    """A CA and a server's certificate for loopback."""
    make_authority(folder / "ca.pem", folder / "ca.key")
    make_server_certificate(
        "localhost", folder / "server.pem", folder / "server.key", folder / "ca.pem", folder / "ca.key"
    )


def write_node_key(path: Path) -> None:
    """An ECDSA key pair as `ssh-keygen -t ecdsa -b 384` makes it."""
    make_node_key(path, path.with_suffix(".pub"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def small_run(phones: int, more: str = "") -> str:
    """Settings of a run over so many phones, without noise and with little work beside; `more` sections follow."""
    return f"""
[privacy]
noise = false
min_cohort = {phones}
dropout = 0
corrupted = 0
[testing]
small_cohorts = true
[clusters]
iterations = 1
[visualise]
enabled = false
[planner]
tolerance = 0
{more}"""


class Fleet:
    """The processes of the test, all of them ended by `stop`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.started: list[subprocess.Popen[bytes]] = []
        self.port = 0  # of the SuperLink, once it is started
        (folder / "flwr").mkdir()
        self.environment = {**os.environ, **QUIET, "FLWR_HOME": str(folder / "flwr"), "FEDCAPTOR_TEST": self.mark}
        self.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.work = folder / "work"
        self.work.mkdir()

    def start(self, name: str, *arguments: object, log: str | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / f"{log or name}.log").open("wb") as output:
            process = subprocess.Popen(
                [Path(sys.executable).parent / name, *map(str, arguments)],
                cwd=self.work,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def flwr(self, *arguments: object, timeout: float = 800) -> str:
        process = self.start("flwr", *arguments)
        process.wait(timeout)
        text = (self.folder / "flwr.log").read_text(errors="replace")
        assert process.returncode == 0, text
        return text

    def logs(self) -> str:
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-6000:]}" for p in self.folder.glob("*.log"))

    def stop(self) -> None:
        for process in self.started:
            process.terminate()
        for process in self.started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        stragglers = self.left()
        for process in stragglers:
            process.kill()
        psutil.wait_procs(stragglers, timeout=10)

    def left(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("FEDCAPTOR_TEST") == self.mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found


def wait_for_superlink(process: subprocess.Popen[bytes], port: int, ca: Path) -> None:
    context = ssl.create_default_context(cafile=ca)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    for _ in range(600):
        assert process.poll() is None
        try:
            with opener.open(f"https://localhost:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the SuperLink does not answer over TLS")


def start_superlink(fleet: Fleet, *options: object) -> int:
    """A SuperLink with TLS and node authentication, and Flower's settings for it: returns its port."""
    folder = fleet.folder
    write_certificates(folder)
    port, ca = free_port(), folder / "ca.pem"
    superlink = fleet.start(
        "flower-superlink", "--host", "127.0.0.1", "--port", port, "--enable-supernode-auth",
        "--ssl-ca-certfile", ca, "--ssl-certfile", folder / "server.pem", "--ssl-keyfile", folder / "server.key",
        *options,
    )  # fmt: skip
    (folder / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "own"\n[superlink.own]\naddress = "localhost:{port}"\nroot-certificates = "{ca}"\n'
    )
    wait_for_superlink(superlink, port, ca)
    fleet.port = port
    return port


def registered_key(fleet: Fleet, name: str) -> Path:
    """The file of a node's private key, whose public part the SuperLink knows."""
    return registered_keys(fleet, [name])[0]


def registered_keys(fleet: Fleet, names: Iterable[str]) -> list[Path]:
    """The files of nodes' private keys, whose public parts the SuperLink knows."""
    keys = [fleet.folder / name for name in names]
    with connected_at(fleet.port, fleet.folder / "ca.pem") as superlink:
        for key in keys:
            write_node_key(key)
            superlink.register(der_of(key.with_suffix(".pub").read_bytes(), key.name))
    return keys


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU seconds of a process and of its children that ended."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def write_phone(
    folder: Path, port: int, key: Path, classes: Iterable[int], settings: str, engine: str = "onnx"
) -> Path:
    """A resident phone's file, beside its images of these classes. `engine`: torch, or onnx by an exported graph."""
    write_images(folder / "images", classes)
    file, graph = folder / "phone.toml", folder.parent / "graph.onnx"
    if engine == "onnx" and not graph.exists():
        export_graph("small-cnn", SHIPPED, "embedded", graph)
    file.write_text(
        settings
        + f"""
[device]
superlink = "localhost:{port}"
root_certificates = "{folder.parent / "ca.pem"}"
key = "{key}"
folder = "own"
images = "images"
weights = "{SHIPPED}"
graph = "{graph if engine == "onnx" else ""}"
model = "small-cnn"
input_shape = [1, 28, 28]
poll_seconds = 1
"""
    )
    return file


def start_phone(fleet: Fleet, way: str, file: Path, number: int, port: int, key: Path) -> subprocess.Popen[bytes]:
    """A phone of a file that `write_phone` wrote: a `resident` process, or a `supernode` with the same settings."""
    log = f"phone-{number}"
    if way == "resident":
        return fleet.start("fedcaptor", "phone", "run", "--config", file, log=log)
    shared = file.with_name("shared.toml")
    shared.write_text(file.read_text().partition("[device]")[0])
    settings = {
        "folder": file.parent / "own",
        "images": file.parent / "images",
        "weights": SHIPPED,
        "model": "small-cnn",
        "input-shape": "1x28x28",
        "config": shared,
    }
    return fleet.start(
        "flower-supernode", "--superlink", f"localhost:{port}", "--root-certificates", fleet.folder / "ca.pem",
        "--auth-supernode-private-key", key, "--host", "127.0.0.1", "--port", free_port(),
        "--node-config", " ".join(f'{name}="{value}"' for name, value in settings.items()), log=log,
    )  # fmt: skip


def start_run(fleet: Fleet, settings: str, phones: int, rounds: int = 0) -> subprocess.Popen[bytes]:
    """Start a run with these settings over so many phones, or go on with it, for so many `rounds`, 0: all; its process
    ends with them.
    """
    folder = fleet.folder
    shutil.copytree(asset("deploy/flower-app"), folder / "flower-app", dirs_exist_ok=True)
    (folder / "config.toml").write_text(settings)
    run_config = {"config": folder / "config.toml", "folder": folder / "server", "weights": SHIPPED}
    lines = [f'{name} = "{value}"\n' for name, value in run_config.items()]
    (folder / "settings.toml").write_text("".join([*lines, f"nodes = {phones}\nrounds = {rounds}\n"]))
    return fleet.start(
        "flwr", "run", folder / "flower-app", "own", "--stream", "--run-config", folder / "settings.toml", log="run"
    )
