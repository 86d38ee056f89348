"""Read the key that a phone is registered by, at the SuperLink and the catalogue alike."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from fedcaptor.common.errors import ConfigError
from fedcaptor.common.secure.key_files import read_key


def node_key(path: Path) -> EllipticCurvePrivateKey:
    """Read a node's private key, ECDSA in OpenSSH's format without a password. Raises ConfigError where it is none."""
    key = read_key(path, partial(load_ssh_private_key, password=None))
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigError(f"{path} holds no node key: make one with `ssh-keygen -t ecdsa -b 384 -N '' -f FILE`")
    return key
