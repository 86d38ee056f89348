"""Run a deployment's services on this machine: supervisord keeps them running, one for each deployment."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import xmlrpc.client
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout
from supervisor.xmlrpc import SupervisorTransport

from fedcaptor.common.errors import ConfigError, StateError
from fedcaptor.deploy import superlink
from fedcaptor.deploy.environment import MARK, environment_of_supervisor, read_environment
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.programs import ours
from fedcaptor.deploy.render import render
from fedcaptor.deploy.services import Service, services_of

READY_SECONDS = 120.0
_STOP_SECONDS = 40.0
_SUPERVISOR_SECONDS = 20.0
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Running:
    """A service as it is now. `state`: in supervisord's words, or `missing` or `down`; `since`: seconds it runs."""

    name: str
    about: str
    state: str
    pid: int = 0
    since: float = 0.0
    note: str = ""


def up(deployment: Deployment, say: Callable[[str], object]) -> list[Running]:
    """Start what does not run yet, wait until it is ready, and enrol the phones at the SuperLink.

    `say` hears what happens. Raises ConfigError where a program is missing, StateError where a service does not become
    ready; what was started stays, for its log and another try.
    """
    with _alone(deployment):
        services = services_of(deployment)
        for service in services:
            if service.missing and service.required:
                raise ConfigError(f"{service.command[0]} is not installed: apt install {service.package}")
            if service.missing:
                say(
                    f"{service.name} is left out: {service.command[0]} is not installed (apt install {service.package})"
                )
        read_environment(deployment.environment_file)  # a wrong line is told here, not in a log
        render(deployment)
        services = [service for service in services if not service.missing]
        supervisor = _supervisor(deployment)
        if supervisor is None:
            end_leftovers(deployment, say)
            if taken := strangers_ports(deployment):
                names = ", ".join(f"deployment.{name} = {port}" for name, port in taken.items())
                raise StateError(f"another process listens where a service should: stop it, or change {names}")
            supervisor = _start_supervisor(deployment)
        else:
            _reload(supervisor)
        phones = [service for service in services if service.phone]
        _start(supervisor, deployment, [service for service in services if not service.phone], say)
        added, removed = superlink.enrol(deployment)
        if added or removed:
            say(f"{added} phones enrolled at the SuperLink, {removed} shut out")
        _start(supervisor, deployment, phones, say)
        return status(deployment)


def down(deployment: Deployment, say: Callable[[str], object]) -> None:
    """Stop all processes of the deployment, and see that none is left."""
    with _alone(deployment):
        supervisor = _supervisor(deployment)
        if supervisor is not None:
            say("stopping")
            pid = int(supervisor.supervisor.getPID())
            supervisor.supervisor.shutdown()
            with suppress(psutil.NoSuchProcess):
                _wait_for(lambda: not psutil.pid_exists(pid), _STOP_SECONDS)
        end_leftovers(deployment, say)
        deployment.supervisor_socket.unlink(missing_ok=True)


def status(deployment: Deployment) -> list[Running]:
    """Tell how each service is; without a supervisor, by its process, as systemd or a container may run it."""
    supervisor, services = _supervisor(deployment), services_of(deployment)
    if supervisor is None:
        found = processes_of(deployment)
        return [_running_elsewhere(service, found) for service in services]
    known = {found["name"]: found for found in supervisor.supervisor.getAllProcessInfo()}
    return [_running(service, known.get(service.name)) for service in services]


def end_leftovers(deployment: Deployment, say: Callable[[str], object] = lambda text: None) -> None:
    """End processes of this deployment that nobody supervises, as after the supervisor was killed."""
    found = processes_of(deployment)
    if not found:
        return
    say(f"ending {len(found)} processes that nobody supervises")
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(found, timeout=10)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=10)


def processes_of(deployment: Deployment) -> list[psutil.Process]:
    """Find the processes of this deployment; this one and its parents excepted.

    They are told by the mark in their environment, or, as nginx clears its own, by its configuration's path, and by
    their parents.
    """
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    front = str(deployment.services / "nginx.conf")
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            marked = process.environ().get(MARK) == str(deployment.root)
            if process.pid not in mine and (marked or any(front in word for word in process.cmdline())):
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
            elif process.cmdline()[:1] == ["nginx: worker process"]:  # its master was killed: it keeps the port
                ports = {connection.laddr.port for connection in process.net_connections("tcp")}
                if deployment.settings.port in ports:
                    found[process.pid] = process
    return list(found.values())


def strangers_ports(deployment: Deployment) -> dict[str, int]:
    """Return the ports on which somebody listens, by their keys; to be asked while no service runs."""
    found, settings = {}, deployment.settings
    for name, port in settings.model_dump().items():
        if name == "enrolment_port" and not settings.enrolment:
            continue
        if (name == "port" or name.endswith("_port")) and is_listened_on(port):
            found[name] = port
    return found


def is_listened_on(port: int) -> bool:
    """Tell whether somebody accepts connections on a loopback port."""
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _running(service: Service, known: dict[str, Any] | None) -> Running:
    if service.missing:
        return Running(service.name, service.about, "missing", note=f"apt install {service.package}")
    if known is None:
        return Running(service.name, service.about, "down")
    state, since = known["statename"].lower(), 0.0
    if state == "running":
        since = float(known["now"] - known["start"])
    return Running(service.name, service.about, state, int(known["pid"]), since, note=str(known["spawnerr"]))


def _running_elsewhere(service: Service, processes: Iterable[psutil.Process]) -> Running:
    """Tell how a service is by its arguments among those of the deployment's processes, the oldest of which counts."""
    arguments, found = " ".join(service.command[1:]), []
    for process in processes:
        with suppress(psutil.Error):
            if arguments in " ".join(process.cmdline()):
                found.append((process.create_time(), process.pid))
    if not found:
        return _running(service, None)
    began, pid = min(found)
    return Running(service.name, service.about, "running", pid, time.time() - began, note="(not by deploy up)")


def _start(
    supervisor: Any,
    deployment: Deployment,
    services: Iterable[Service],
    say: Callable[[str], object],
) -> None:
    started = []
    for service in services:
        state = supervisor.supervisor.getProcessInfo(service.name)["statename"]
        if state == "RUNNING":
            say(f"{service.name} runs already")
            continue
        if state == "BACKOFF":  # between two attempts: the next one is now
            supervisor.supervisor.stopProcess(service.name)
        if state != "STARTING":
            supervisor.supervisor.startProcess(service.name, False)
        started.append(service)
    for service in started:
        if _wait_for(partial(_is_ready, supervisor, deployment, service), READY_SECONDS):
            say(f"{service.name} is ready")
            continue
        problem = (
            f"{service.name} is not ready after {READY_SECONDS:.0f} s: {_last_line(deployment, service)}; see "
            f"`fedcaptor deploy logs {deployment.root} {service.name}`"
        )
        if service.required:
            raise StateError(problem)
        say(f"{problem}; going on without it")


def _is_ready(supervisor: Any, deployment: Deployment, service: Service) -> bool:
    if supervisor.supervisor.getProcessInfo(service.name)["statename"] != "RUNNING":
        return False
    if not service.ready:
        return True
    context = ssl.create_default_context(cafile=str(deployment.authority)) if service.verified else None
    handlers = [urllib.request.ProxyHandler({}), *([urllib.request.HTTPSHandler(context=context)] if context else [])]
    try:
        with urllib.request.build_opener(*handlers).open(service.ready, timeout=2):
            return True
    except (OSError, urllib.error.URLError, http.client.HTTPException):
        return False


def _last_line(deployment: Deployment, service: Service) -> str:
    log = deployment.logs / f"{service.name}.log"
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return lines[-1].strip() if lines else "its log is empty"


def _supervisor(deployment: Deployment) -> Any:
    """Return the deployment's supervisor, None where none answers."""
    transport = SupervisorTransport(None, None, f"unix://{deployment.supervisor_socket}")
    proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
    try:
        proxy.supervisor.getState()
    except (OSError, xmlrpc.client.Error, http.client.HTTPException):
        return None
    return proxy


def _start_supervisor(deployment: Deployment) -> Any:
    deployment.supervisor_socket.unlink(missing_ok=True)
    command = [str(ours("supervisord")), "-c", str(deployment.services / "supervisord.conf")]
    begun = subprocess.run(
        command,
        env=environment_of_supervisor(deployment),
        cwd=deployment.state / "work",
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if begun.returncode or not _wait_for(lambda: _supervisor(deployment) is not None, _SUPERVISOR_SECONDS):
        raise StateError(
            f"supervisord does not start: {(begun.stderr or begun.stdout).strip()[-300:]}; see {deployment.logs}"
        )
    return _supervisor(deployment)


def _reload(supervisor: Any) -> None:
    """Let the supervisor know of services that came, went or changed."""
    added, changed, removed = supervisor.supervisor.reloadConfig()[0]
    for name in (*changed, *removed):
        supervisor.supervisor.stopProcessGroup(name)
        supervisor.supervisor.removeProcessGroup(name)
    for name in (*added, *changed):
        supervisor.supervisor.addProcessGroup(name)


@contextmanager
def _alone(deployment: Deployment) -> Iterator[None]:
    """Keep a second command from starting or stopping services meanwhile."""
    lock = FileLock(deployment.root / ".lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise StateError(f"another command starts or stops {deployment.root}: wait for it") from None


def _wait_for(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def log_files(deployment: Deployment) -> dict[str, Path]:
    """Return the log files of the services by name."""
    return {path.stem: path for path in sorted(deployment.logs.glob("*.log"))}
