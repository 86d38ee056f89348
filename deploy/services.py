"""The services of a deployment: their commands, and how to tell that they are ready."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcaptor.deploy.folder import KEY, Deployment
from fedcaptor.deploy.programs import find, ours


@dataclass(frozen=True)
class Service:
    """A process that is kept running. `ready`: a URL on loopback that answers once it is; empty: started is enough.

    `verified`: TLS by the deployment's own authority. `package`: the Debian package of a program that was not found.
    `phone`: it is a phone, to be started when it is enrolled. `secrets`: its environment has those of runs.
    `configuration`: a file that it reads when it starts.
    """

    name: str
    about: str
    command: tuple[str, ...]
    ready: str = ""
    verified: bool = False
    package: str = ""
    required: bool = True
    phone: bool = False
    secrets: bool = False
    configuration: Path | None = None

    @property
    def missing(self) -> bool:
        """Whether its program is not on this machine."""
        return not Path(self.command[0]).is_file()


def services_of(deployment: Deployment) -> list[Service]:
    """List the services on the server's machine, in the order in which they start."""
    settings = deployment.settings
    here = "127.0.0.1"
    superlink = Service(
        "superlink",
        "Flower's SuperLink",
        (
            str(ours("flower-superlink")),
            *("--host", here, "--port", str(settings.superlink_port)),
            "--enable-supernode-auth",
            *("--ssl-ca-certfile", str(deployment.authority)),
            *("--ssl-certfile", str(deployment.certificate), "--ssl-keyfile", str(deployment.certificate_key)),
            *("--database", str(deployment.superlink_database)),
            "--disable-runtime-dependency-installation",
        ),
        f"https://{here}:{settings.superlink_port}/health",
        verified=True,
        secrets=True,  # runs inherit them
    )
    catalogue = Service(
        "catalogue",
        "signed files for phones",
        (
            str(ours("fedcaptor")),
            *("catalogue", "serve", "--folder", str(deployment.catalogue), "--keys", str(deployment.catalogue_keys)),
            *("--host", here, "--port", str(settings.catalogue_port)),
            *("--metrics-port", str(settings.catalogue_metrics_port)),
        ),
        f"http://{here}:{settings.catalogue_metrics_port}/metrics",
    )
    enrolment = Service(
        "enrolment", "lets phones in by tokens", (str(ours("fedcaptor")), "deploy", "enrolments", str(deployment.root))
    )
    front = _foreign(
        "front",
        "proxy that phones see",
        "nginx",
        ("-c", str(deployment.services / "nginx.conf"), "-e", "stderr"),
        package="nginx",
        configuration=deployment.services / "nginx.conf",
    )
    exporter = Service(
        "exporter",
        "metrics of the runs",
        (
            str(ours("fedcaptor")),
            *("exporter", str(deployment.runs), "--port", str(settings.exporter_port)),
            *("--certificate", str(deployment.front_certificates[0])),
        ),
        f"http://{here}:{settings.exporter_port}/metrics",
    )
    prometheus = _foreign(
        "prometheus",
        "stores metrics, evaluates rules",
        "prometheus",
        (
            f"--config.file={deployment.prometheus / 'prometheus.yml'}",
            f"--storage.tsdb.path={deployment.state / 'prometheus'}",
            "--storage.tsdb.retention.time=180d",
            f"--web.listen-address={here}:{settings.prometheus_port}",
        ),
        f"http://{here}:{settings.prometheus_port}/-/ready",
        "prometheus",
        required=False,
        configuration=deployment.prometheus / "prometheus.yml",
    )
    alertmanager = _foreign(
        "alertmanager",
        "sends alerts",
        "prometheus-alertmanager",
        (
            f"--config.file={deployment.services / 'alertmanager.yml'}",
            f"--storage.path={deployment.state / 'alertmanager'}",
            f"--web.listen-address={here}:{settings.alertmanager_port}",
            "--cluster.listen-address=",
        ),
        f"http://{here}:{settings.alertmanager_port}/-/ready",
        "prometheus-alertmanager",
        required=False,
        configuration=deployment.services / "alertmanager.yml",
    )
    rounds = Service(
        "rounds",
        "starts rounds when they are due",
        (str(ours("fedcaptor")), "deploy", "run", str(deployment.root), "--every", f"{settings.every_days:g}"),
    )
    by_token = [enrolment] if settings.enrolment else []
    scheduled = [rounds] if settings.every_days else []
    return [
        superlink,
        catalogue,
        *by_token,
        front,
        exporter,
        prometheus,
        alertmanager,
        *scheduled,
        *_phones(deployment),
    ]


def _phones(deployment: Deployment) -> Iterator[Service]:
    """The phones that run on this machine too: those that are enrolled and have their key here."""
    enrolled = deployment.enrolled_keys()
    if deployment.settings.local_phones:
        for folder in deployment.phone_folders():
            if folder.name not in enrolled or not (folder / KEY).is_file():
                continue
            command = (str(ours("fedcaptor")), "phone", "run", "--config", str(folder / "phone.toml"))
            yield Service(folder.name, "phone on this machine", command, phone=True)


def _foreign(
    name: str, about: str, program: str, options: tuple[str, ...], ready: str = "", package: str = "", **more: Any
) -> Service:
    return Service(name, about, (str(find(program) or program), *options), ready, package=package, **more)
