"""Let phones in and shut them out: the deployment's list of public keys is what counts, the SuperLink follows it."""

from __future__ import annotations

import re
from pathlib import Path

from fedcaptor.common.errors import ConfigError
from fedcaptor.common.files import read_bounded, write_whole
from fedcaptor.deploy import superlink
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.phones import write_phone
from fedcaptor.deploy.processes import status
from fedcaptor.deploy.render import write_catalogue_keys

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MAX_BYTES = 1 << 14


def enrol(deployment: Deployment, name: str, public_key: Path) -> Path:
    """Enrol a phone by the public key that it made, and return the folder with what else it needs.

    The SuperLink knows it at once where it runs, else from the next `up` on.

    Raises ConfigError for a name or key that is malformed or known already.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"the phone's name is {name[:80]!r}, must be letters, digits, '_' or '-': choose another")
    key = read_bounded(public_key, _MAX_BYTES, "public key")
    added = superlink.der_of(key, str(public_key))
    for other, known in deployment.enrolled_keys().items():
        if superlink.der_of(known, other) == added:
            raise ConfigError(f"{public_key} is enrolled as {other} already: each phone has a key of its own")
    target = deployment.enrolled / f"{name}.pub"
    if target.exists():
        raise ConfigError(f"a phone {name} is enrolled already: choose another name, or revoke it first")
    folder = write_phone(deployment, name)
    write_whole(target, key.strip() + b"\n")
    _tell_services(deployment)
    return folder


def revoke(deployment: Deployment, name: str) -> None:
    """Shut a phone out; its folder, if it was made here, stays. Raises ConfigError where none has this name."""
    key = deployment.enrolled / f"{name}.pub"
    if not _NAME.fullmatch(name) or not key.exists():
        known = ", ".join(list(deployment.enrolled_keys())[:5]) or "none"
        raise ConfigError(f"no phone {name[:80]!r} is enrolled: enrolled are {known}, …")
    key.unlink()
    _tell_services(deployment)


def _tell_services(deployment: Deployment) -> None:
    write_catalogue_keys(deployment)
    if any(service.name == "superlink" and service.state == "running" for service in status(deployment)):
        superlink.enrol(deployment)
