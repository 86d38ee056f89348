"""How a deployment is now, in one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.processes import Running, status
from fedcaptor.deploy.runs import last_snapshot
from fedcaptor.deploy.superlink import SuperLinkError, connected
from fedcaptor.server import snapshot


@dataclass(frozen=True)
class Overview:
    """Services, phones and the newest run's figures. `healthy`: all that is installed runs."""

    services: tuple[Running, ...]
    enrolled: int
    online: int
    run: dict[str, Any]
    healthy: bool


def overview(deployment: Deployment) -> Overview:
    """Ask supervisor and SuperLink, and read the newest run's snapshot."""
    services = tuple(status(deployment))
    online = 0
    if any(service.name == "superlink" and service.state == "running" for service in services):
        try:
            with connected(deployment) as superlink:
                online = sum(node.status == "online" for node in superlink.nodes())
        except SuperLinkError:
            online = 0
    healthy = all(service.state in ("running", "missing") for service in services)
    return Overview(services, len(deployment.enrolled_keys()), online, _newest_run(deployment), healthy)


def _newest_run(deployment: Deployment) -> dict[str, Any]:
    files = sorted(deployment.runs.glob(f"*/{snapshot.FILE}"), key=lambda path: path.stat().st_mtime)
    found = last_snapshot(files[-1].parent) if files else None
    if found is None:
        return {}
    return {
        "name": files[-1].parent.name,
        **found.model_dump(include={"status", "error", "round", "phones", "epsilon", "fleet", "looks"}),
    }
