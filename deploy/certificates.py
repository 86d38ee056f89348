"""Certificates of a deployment: an authority of its own, and a certificate for its services."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedcaptor.common.errors import ConfigError
from fedcaptor.common.files import read_bounded, write_whole
from fedcaptor.common.secure.key_files import read_key

AUTHORITY_DAYS, SERVER_DAYS = 3650, 397
"""Days that certificates are valid: browsers and phones refuse a server's of more than 398."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MAX_BYTES = 1 << 16


def make_authority(certificate: Path, key: Path) -> None:
    """Write a certificate authority: `certificate` is for everybody, `key` of mode 0600."""
    private = generate_private_key(SECP256R1())
    name = _name("FedCAPTOR deployment authority")
    made = _builder(name, name, private, AUTHORITY_DAYS)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    made = made.add_extension(_usage(authority=True), critical=True)
    made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
    write_private_key(key, private)
    write_whole(certificate, made.sign(private, SHA256()).public_bytes(Encoding.PEM))


def make_server_certificate(
    host: str, certificate: Path, key: Path, authority: Path, authority_key: Path, days: float = SERVER_DAYS
) -> None:
    """Write a certificate for `host` and for loopback, issued by `authority`, and its key of mode 0600.

    Raises ConfigError where the authority's key cannot be read.
    """
    issuer = read_certificate(authority)
    issuer_key = read_key(authority_key, lambda content: load_pem_private_key(content, None))
    if not isinstance(issuer_key, EllipticCurvePrivateKey):
        raise ConfigError(f"{authority_key} holds no private key in PEM: restore it, or begin a new deployment")
    private = generate_private_key(SECP256R1())
    names = x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys((host, *LOOPBACK))])
    made = _builder(_name(host[:64]), issuer.subject, private, days).add_extension(names, critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    made = made.add_extension(_usage(authority=False), critical=True)
    made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    made = made.add_extension(issued_by, critical=False)
    write_private_key(key, private)
    write_whole(certificate, made.sign(issuer_key, SHA256()).public_bytes(Encoding.PEM))


def read_certificate(path: Path) -> x509.Certificate:
    """Read the first certificate of a PEM file. Raises ConfigError where there is none."""
    try:
        return x509.load_pem_x509_certificate(read_bounded(path, _MAX_BYTES, "certificate"))
    except ValueError:
        raise ConfigError(f"{path} holds no certificate in PEM: give what the authority issued") from None


def names_of(certificate: x509.Certificate) -> set[str]:
    """Return the host names and IP addresses that a certificate is for."""
    try:
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    addresses = {str(address) for address in held.get_values_for_type(x509.IPAddress)}
    return addresses | set(held.get_values_for_type(x509.DNSName))


def days_left(certificate: x509.Certificate, now: datetime | None = None) -> float:
    """Return the days for which a certificate is still valid, negative after its end."""
    return (certificate.not_valid_after_utc - (now or datetime.now(UTC))) / timedelta(days=1)


def write_private_key(path: Path, key: EllipticCurvePrivateKey) -> None:
    """Write a key as PEM, readable by its owner alone."""
    write_whole(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), private=True)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number())
    # An hour back, for phones whose clocks are late.
    return made.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=days))


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
