"""Make and read the key that a phone is registered by, at the SuperLink and the catalogue alike."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from fedcaptor.common.errors import ConfigError
from fedcaptor.common.files import write_whole
from fedcaptor.common.secure.key_files import read_key


def node_key(path: Path) -> EllipticCurvePrivateKey:
    """Read a node's private key, ECDSA in OpenSSH's format without a password. Raises ConfigError where it is none."""
    key = read_key(path, partial(load_ssh_private_key, password=None))
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigError(f"{path} holds no node key: make one with `fedcaptor phone key FILE`")
    return key


def make_node_key(key: Path, public: Path) -> None:
    """Write a node's key pair as `ssh-keygen -t ecdsa -b 384` does; the private one is for its owner's eyes alone."""
    private = generate_private_key(SECP384R1())
    openssh = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    write_whole(key, openssh, private=True)
    write_whole(public, public_line(private))


def public_line(key: EllipticCurvePrivateKey) -> bytes:
    """Return the public half in OpenSSH's format, by which an operator enrols the phone."""
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"
