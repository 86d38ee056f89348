"""A PostgreSQL server of the tests' own on loopback, where its programs are installed."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from fedcaptor.common.assets import asset

TOOLS = asset("pyproject.toml").parent / ".tools"
OWNER, PASSWORD = "owner", "hunter2"


def programs() -> Path | None:
    """The folder of `postgres`, `initdb`, `pg_dump` and `pg_restore`; None where they are not installed."""
    places = [Path(found).resolve().parent] if (found := shutil.which("postgres")) else []
    for root in (Path("/"), TOOLS):
        places += sorted(root.glob("usr/lib/postgresql/*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


def environment(place: Path) -> dict[str, str]:
    """Of programs in `place`, which find their libraries also where Debian's packages were only unpacked."""
    values = {**os.environ, "PATH": f"{place}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C"}
    if place.is_relative_to(TOOLS):
        values["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, TOOLS.glob("**/lib/*-linux-gnu")))
    return values


class PostgreSQL:
    """A server with its data in a folder of its own. It refuses to run as root: then another user runs it."""

    def __init__(self, place: Path, folder: Path) -> None:
        self.place, self.folder, self.data = place, folder, folder / "data"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.user = None if os.getuid() else "nobody"
        password = folder / "password"
        password.write_text(PASSWORD)
        if self.user:
            for path in (folder, password):
                shutil.chown(path, self.user)
        command = ["initdb", "--pgdata", self.data, "--username", OWNER, "--pwfile", password]
        self._start(*command, "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-sync").wait()
        assert (self.data / "PG_VERSION").exists(), (folder / "initdb.log").read_text()

    def _start(self, program: str, *arguments: object) -> subprocess.Popen[bytes]:
        own = {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []} if self.user else {}
        with (self.folder / f"{program}.log").open("ab") as log:
            return subprocess.Popen(
                [self.place / program, *map(str, arguments)],
                cwd=self.folder,
                env=environment(self.place),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                **own,
            )

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "port": self.port,
            "fsync": "off",
            "jit": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self.process = self._start("postgres", "-D", self.data, *options)
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.folder / "postgres.log").read_text()

    def stop(self, way: signal.Signals = signal.SIGINT) -> None:
        """Stop the server; SIGQUIT: without a checkpoint, as after a crash. Every connection ends at once."""
        if self.process is not None:
            self.process.send_signal(way)
            self.process.wait()
            self.process = None

    def url(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql://{OWNER}:{password}@127.0.0.1:{self.port}/{database}"

    def create(self) -> str:
        """The URL of a new, empty database."""
        name = f"state_{secrets.token_hex(8)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)


@contextmanager
def running() -> Iterator[PostgreSQL]:
    """Give a server that runs; skip the test where there is none."""
    place = programs()
    if place is None:
        pytest.skip("PostgreSQL's programs are not installed")
    folder = Path(tempfile.mkdtemp(prefix="fedcaptor-postgresql-"))
    try:
        try:
            server = PostgreSQL(place, folder)
        except PermissionError:
            pytest.skip(f"root cannot run PostgreSQL, and another user may not read {place}")
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
