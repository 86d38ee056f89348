"""Let phones in and shut them out: the deployment's list of public keys is what counts, the SuperLink follows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from fedcaptor.common.errors import ConfigError
from fedcaptor.common.files import read_bounded, write_whole
from fedcaptor.deploy import superlink
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.phones import write_phone
from fedcaptor.deploy.render import write_catalogue_keys

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MAX_BYTES = 1 << 14


def enrol(deployment: Deployment, name: str, public_key: Path) -> Path:
    """Enrol a phone by the public key that it made, and return the folder with what else it needs.

    The SuperLink knows it at once where it runs, else from the next `up` on.

    Raises ConfigError for a name or key that is malformed or known already.
    """
    key = read_bounded(public_key, _MAX_BYTES, "public key")
    with alone(deployment):
        require_new_name(deployment, name)
        superlink.der_of(key, str(public_key))
        if (known := name_of(deployment, key)) is not None:
            raise ConfigError(f"{public_key} is enrolled as {known} already: each phone has a key of its own")
        folder = write_phone(deployment, name)
        write_enrolled(deployment, name, key)
    return folder


def require_new_name(deployment: Deployment, name: str) -> None:
    """Raise ConfigError for a phone's name that is malformed or enrolled already."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"the phone's name is {name[:80]!r}, must be letters, digits, '_' or '-': choose another")
    if (deployment.enrolled / f"{name}.pub").exists():
        raise ConfigError(f"a phone {name} is enrolled already: choose another name, or revoke it first")


def name_of(deployment: Deployment, key: bytes) -> str | None:
    """Return the name of the phone that is enrolled with a public key, None where there is none."""
    wanted = superlink.der_of(key, "the key")
    keys = deployment.enrolled_keys().items()
    return next((name for name, known in keys if superlink.der_of(known, name) == wanted), None)


def write_enrolled(deployment: Deployment, name: str, key: bytes) -> None:
    """Let a phone in by its public key, which was looked at before."""
    write_whole(deployment.enrolled / f"{name}.pub", key.strip() + b"\n")
    _tell_services(deployment)


@contextmanager
def alone(deployment: Deployment) -> Iterator[None]:
    """Wait until nobody else enrols or revokes phones."""
    with FileLock(deployment.root / ".enrolled.lock"):
        yield


def revoke(deployment: Deployment, name: str) -> None:
    """Shut a phone out; its folder, if it was made here, stays. Raises ConfigError where none has this name."""
    key = deployment.enrolled / f"{name}.pub"
    with alone(deployment):
        if not _NAME.fullmatch(name) or not key.exists():
            known = ", ".join(list(deployment.enrolled_keys())[:5]) or "none"
            raise ConfigError(f"no phone {name[:80]!r} is enrolled: enrolled are {known}, …")
        key.unlink()
        _tell_services(deployment)


def tell_superlink(deployment: Deployment) -> None:
    """Let the SuperLink know who is enrolled, whoever started it. Raises SuperLinkAwayError where it is away."""
    with alone(deployment):
        superlink.enrol(deployment)


def _tell_services(deployment: Deployment) -> None:
    """Let catalogue and SuperLink know; a SuperLink that is away hears of it from the next `up`."""
    write_catalogue_keys(deployment)
    with suppress(superlink.SuperLinkAwayError):
        superlink.enrol(deployment)
