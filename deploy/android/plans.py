"""What a step would do with a device, a sentence each, for `--dry-run`: it looks at the device and changes nothing.

Each plan refuses as its step would, with a DeviceError.
"""

from __future__ import annotations

from fedcaptor.deploy.android.bundle import Bundle
from fedcaptor.deploy.android.install import Installation
from fedcaptor.deploy.folder import Deployment


def of_push(
    installation: Installation,
    bundle: Bundle,
    deployment: Deployment | None = None,
    name: str = "",
    demo: bool = False,
    start: bool = False,
) -> list[str]:
    """Plan to install a bundle, and where there is a deployment to enrol the device, to bring the images of a
    demonstration (`demo`) and to `start` the client.
    """
    installation.require_fit(bundle)
    plan = [f"send {layer.name}, {layer.size / 2**20:.0f} MiB" for layer in installation.missing(bundle)]
    if not installation.is_current(bundle):
        running = installation.running
        plan.append(f"stop process {running} and start the new client" if running else "put the new client to use")
    if deployment is not None:
        known = installation.name_in(deployment)
        enrol = f"make a key there and enrol it{f' as {name}' if name else ''}"
        plan.append(f"bring the files of {known}" if known else f"{enrol}, and bring its files")
        plan += ["bring embedded images"] if demo and not installation.has_images() else []
        plan += _starting(installation, deployment.settings.port) if start else []
    return plan


def of_start(installation: Installation, port: int) -> list[str]:
    """Plan to lead a port here and start the client."""
    installation.require_installed()
    return _starting(installation, port)


def of_stop(installation: Installation) -> list[str]:
    """Plan to stop the client."""
    running = installation.running
    return [f"stop process {running}"] if running else []


def of_update(installation: Installation, bundle: Bundle) -> list[str]:
    """Plan to bring a bundle onto a device that has one."""
    installation.require_installed()
    return of_push(installation, bundle)


def of_remove(installation: Installation, deployment: Deployment | None) -> list[str]:
    """Plan to stop the client, delete its folder, and shut the phone out of a deployment."""
    plan = of_stop(installation)
    if deployment is not None:
        port, name = deployment.settings.port, installation.name_in(deployment)
        plan += [f"no longer lead its port {port} here"] if port in installation.device.reversed() else []
        plan += [f"shut {name} out of the deployment"] if name else []
    there = installation.device.run(f"[ ! -e '{installation.home}' ] || echo yes").strip()
    return [*plan, f"delete {installation.home}"] if there else plan


def _starting(installation: Installation, port: int) -> list[str]:
    lead = [] if port in installation.device.reversed() else [f"lead its port {port} here"]
    return [*lead, *([] if installation.running else ["start the client"])]
