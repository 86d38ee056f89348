"""`fedcaptor simulate --engine ray`: the Flower app of this project on a SuperLink of its own, which ends with the run.

Flower's `flwr run` alone would leave a SuperLink behind and share it with other projects. Ray's processes are those of
the run, or of the cluster that `RAY_ADDRESS` names, which goes on after it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from fedcaptor.common import flower
from fedcaptor.common.assets import checkout
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import FedcaptorError, StateError

START_SECONDS = 60.0
STOP_SECONDS = 10.0
MARK = "FEDCAPTOR_ENGINE"  # in the environment of every process that an engine started, children's children too
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0 means on every system: loopback alone
QUIET = {
    **flower.QUIET,
    "RAY_USAGE_STATS_ENABLED": "0",
    LOOPBACK: "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OURS = re.compile(r"fedcaptor\.common\.errors\.\w+: (.+)")

OnLine = Callable[[str], None]


def simulate_ray(
    scenario: Path | None,
    overrides: list[str],
    out: Path,
    nodes: int,
    on_line: OnLine = lambda line: print(line, file=sys.stderr),
    app: Path | None = None,
) -> dict[str, Any]:
    """The summary of a run on Flower's simulation engine with `nodes` virtual nodes; a stopped run is resumed.

    `on_line`: Flower's log, line by line. `app`: folder of another Flower app than the checkout's, with its settings.
    Raises FedcaptorError with the app's own message, or the log's path.
    """
    load_config(scenario, [*overrides, f"population.phones={nodes}"])  # errors before anything starts
    root, out = app or checkout(), out.resolve()
    if root is None:
        raise StateError("the engine ray needs the source checkout: install it with `pip install -e .`")
    settings = {
        "scenario": str(scenario.resolve()) if scenario else "",
        "set": shlex.join(overrides),
        "out": str(out),
        "nodes": nodes,
    }
    started = time.time()
    summary = out / "summary.json"
    home = Path(tempfile.mkdtemp(prefix="fedcaptor-"))
    try:
        with _superlink(home) as (port, environment):
            _flwr_run(root, home, port, environment, settings, on_line)
        if not summary.exists() or summary.stat().st_mtime < started - 1:
            raise _failure(home)
        result: dict[str, Any] = json.loads(summary.read_text())
    except FedcaptorError:
        raise  # the log stays
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    shutil.rmtree(home, ignore_errors=True)
    return result


def _failure(home: Path) -> FedcaptorError:
    log = home / "run.log"
    said = _OURS.findall(log.read_text(errors="replace")) if log.exists() else []
    return StateError(f"{said[-1] if said else 'the run on Flower failed'} (log: {log})")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(home: Path) -> dict[str, str]:
    """For all processes of the run: offline, Flower's and Ray's files below `home`."""
    programs = str(Path(sys.executable).parent)
    values = {**os.environ, **QUIET, "FLWR_HOME": str(home / "flwr"), MARK: uuid.uuid4().hex}
    if "RAY_ADDRESS" in os.environ:  # a cluster that runs already, and has other addresses than loopback's
        del values[LOOPBACK]
        values |= {name: value for name, value in os.environ.items() if name == LOOPBACK}
    values["PATH"] = f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"
    if len(str(home)) < 40:  # Ray's socket paths must stay below 107 characters
        values["RAY_TMPDIR"] = str(home)
    return values


@contextmanager
def _superlink(home: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """A SuperLink for simulations on a free loopback port; it and all that it started is stopped at the end."""
    environment, port = _environment(home), _free_port()
    work = home / "work"  # Ray's workers import from here first: nothing may be in it
    work.mkdir()
    (home / "flwr").mkdir()
    connection = f'[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "flwr" / "config.toml").write_text(connection)
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--database", str(home / "flwr" / "state.db")]
    with (home / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            [_program(command[0]), *command[1:]],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the others in order
        )
    try:
        _wait_until_healthy(process, port, home / "superlink.log")
        yield port, environment
    finally:
        _stop(process, environment[MARK])


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with direct.open(f"http://127.0.0.1:{port}/health", timeout=1.0):
                return
        except OSError:
            time.sleep(0.2)
    raise StateError(f"Flower's SuperLink did not start within {START_SECONDS:.0f} s (log: {log})")


def _flwr_run(
    root: Path, home: Path, port: int, environment: Mapping[str, str], settings: Mapping[str, Any], on_line: OnLine
) -> None:
    config = home / "run-config.toml"
    config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    command = [_program("flwr"), "run", str(root), "own", "--stream", "--run-config", str(config)]
    command += ["--federation-config", f"num-supernodes={settings['nodes']} client-resources-num-cpus=1"]
    process = subprocess.Popen(
        command,
        cwd=home / "work",
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as lines, (home / "run.log").open("w") as log:
        for raw in lines:
            line = _COLOUR.sub("", raw.rstrip())
            log.write(f"{line}\n")
            log.flush()
            level, colon, text = line.partition(":")
            if colon and level.strip() in ("INFO", "ERROR") and text.strip():
                on_line(text.strip())
    if process.wait():
        raise _failure(home)


def _stop(superlink: subprocess.Popen[bytes], mark: str) -> None:
    """End the SuperLink and what carries its mark: a simulation in progress, Ray's processes."""
    superlink.send_signal(signal.SIGTERM)
    try:
        superlink.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        superlink.kill()
        superlink.wait()
    for end in (psutil.Process.terminate, psutil.Process.kill):
        left = _marked(mark)
        for process in left:
            try:
                end(process)
            except psutil.Error:
                continue
        psutil.wait_procs(left, timeout=STOP_SECONDS)


def _marked(mark: str) -> list[psutil.Process]:
    """Processes that inherited the mark, this one excepted."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found
