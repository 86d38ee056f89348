"""Write what services read, from the deployment's description: again whenever it may have changed."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from fedcaptor.common.assets import asset
from fedcaptor.common.files import write_whole
from fedcaptor.common.secure.keys import identity_of
from fedcaptor.common.secure.register import signing_key
from fedcaptor.deploy.environment import environment_of, environment_of_runs
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.programs import ours
from fedcaptor.deploy.services import Service, services_of
from fedcaptor.server.catalogue.store import Store


def render(deployment: Deployment) -> None:
    """Write the configuration of the services, and make the folders that they need."""
    folders = (
        deployment.services,
        deployment.runs,
        deployment.logs,
        deployment.state / "work",
        deployment.root / "front",
    )
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    services, settings = services_of(deployment), deployment.settings
    certificate, key = deployment.front_certificates
    places: dict[str, Any] = {
        "settings": settings,
        "authority": deployment.authority,
        "certificate": certificate,
        "key": key,
        "listen": f"[{settings.bind}]:{settings.port}" if ":" in settings.bind else f"{settings.bind}:{settings.port}",
        "folder": deployment.root,
        "state": deployment.state,
        "logs": deployment.logs,
        "work": deployment.state / "work",
        "socket": deployment.supervisor_socket,
        "root": os.geteuid() == 0,
        "user": getpass.getuser(),
    }
    _write(deployment.services / "nginx.conf", "nginx.conf", **places)
    _write_prometheus(deployment)
    if not (deployment.services / "alertmanager.yml").exists():
        _write(deployment.services / "alertmanager.yml", "alertmanager.yml")
    write_catalogue_keys(deployment)
    publish(deployment)
    _write(
        deployment.services / "supervisord.conf",
        "supervisord.conf",
        services=[_for_supervisor(deployment, service) for service in services if not service.missing],
        environment=_listed(environment_of(deployment)),
        **{name: _escaped(str(value)) for name, value in places.items() if isinstance(value, Path)},
    )
    on_servers = [service for service in services if not service.phone]
    _write_units(deployment, on_servers)
    _write_compose(deployment, on_servers)


def write_catalogue_keys(deployment: Deployment) -> None:
    """Tell the catalogue who is enrolled; it reads the file again when it changes."""
    keys = deployment.enrolled_keys().values()
    write_whole(deployment.catalogue_keys, b"".join(key.strip() + b"\n" for key in keys))


def publish(deployment: Deployment) -> None:
    """Publish weights and graph in the catalogue, signed, unless they are what it has."""
    store, operator = Store(deployment.catalogue), signing_key(deployment.operator_key)
    files = [path for path in (deployment.weights, deployment.graph) if path.is_file()]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    published = store.manifest(identity_of(operator))
    if published is None or digests != {entry.name: entry.digest for entry in published.files}:
        store.add(files, operator, time.time())


def _write_prometheus(deployment: Deployment) -> None:
    """Write the configuration and rules that are for all, and the targets of this deployment."""
    source, settings = asset("deploy/monitoring"), deployment.settings
    for path in (source / "prometheus.yml", *(source / "rules").glob("*.yml")):
        write_whole(deployment.prometheus / path.relative_to(source), path.read_bytes())
    targets = {
        "fedcaptor": settings.exporter_port,
        "catalogue": settings.catalogue_metrics_port,
        "alertmanager": settings.alertmanager_port,
        "prometheus": settings.prometheus_port,
    }
    for name, port in targets.items():
        content = json.dumps([{"targets": [f"127.0.0.1:{port}"]}]).encode()
        write_whole(deployment.prometheus / "targets" / f"{name}.json", content)


def _write_units(deployment: Deployment, services: list[Service]) -> None:
    units = deployment.services / "systemd"
    for service in services:
        _write(
            units / f"fedcaptor-{service.name}.service",
            "service.unit",
            about=service.about,
            command=shlex.join(service.command).replace("%", "%%"),
            environment=[f'"{name}={value}"' for name, value in _environment(deployment, service).items()],
            environment_file=deployment.environment_file if service.secrets else "",
            after="" if service.name == "superlink" else " fedcaptor-superlink.service",
            work=deployment.state / "work",
            writable=deployment.root,
        )
    names = " ".join(f"fedcaptor-{service.name}.service" for service in services)
    _write(units / "fedcaptor.target", "fedcaptor.target", units=names)


def _write_compose(deployment: Deployment, services: list[Service]) -> None:
    """Write the same services as containers: of each command, the program is looked up on the image's PATH."""
    _write(
        deployment.services / "compose.yaml",
        "compose.yaml",
        services=[
            {
                "name": service.name,
                "about": service.about,
                "environment": environment_of_runs(deployment) if service.secrets else {},
                "environment_file": deployment.environment_file if service.secrets else "",
                "words": [Path(service.command[0]).name, *(word.replace("$", "$$") for word in service.command[1:])],
            }
            for service in services
        ],
        environment=environment_of(deployment),
        folder=deployment.root,
        work=deployment.state / "work",
        uid=os.geteuid(),
        gid=os.getegid(),
    )


def _environment(deployment: Deployment, service: Service) -> dict[str, str]:
    return environment_of(deployment) | (environment_of_runs(deployment) if service.secrets else {})


def _for_supervisor(deployment: Deployment, service: Service) -> dict[str, str]:
    command = service.command
    if service.secrets:
        command = str(ours("python")), "-m", "fedcaptor.deploy.environment", str(deployment.environment_file), *command
    variables = environment_of_runs(deployment) if service.secrets else {}
    if service.configuration is not None:  # a service whose section has changed is started again
        digest = hashlib.sha256(service.configuration.read_bytes()).hexdigest()
        variables = {**variables, "FEDCAPTOR_CONFIGURATION": digest}
    return {
        "name": service.name,
        "about": service.about,
        "command": _escaped(shlex.join(command)),
        "environment": _listed(variables),
    }


def _listed(variables: Mapping[str, str]) -> str:
    """Return variables as supervisord reads them."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in variables.items())


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _write(path: Path, template: str, **values: Any) -> None:
    write_whole(path, _TEMPLATES.get_template(template).render(**values).encode())


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(asset("deploy/templates")),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)
