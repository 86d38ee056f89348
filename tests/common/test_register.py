"""The register of enrolled phones: what its operator signed and nothing else is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from typer.testing import CliRunner

from fedcaptor.cli.main import app
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.secure.keys import identity_of
from fedcaptor.common.secure.register import HEAD, operator_key, read_register, sign, signing_key
from tests.common.secure_cohort import identity

OPERATOR, OTHER = identity("operator"), identity("another operator")
PHONES = [identity_of(identity(node)) for node in range(3)]
REGISTER = sign([phone.hex() for phone in PHONES], OPERATOR)


def pem(key: Ed25519PrivateKey | X25519PrivateKey) -> tuple[bytes, bytes]:
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


def test_a_register_holds_whom_the_operator_enrolled(tmp_path: Path) -> None:
    (tmp_path / "register").write_bytes(REGISTER)
    found = read_register(tmp_path / "register", identity_of(OPERATOR))
    assert len(found) == len(PHONES)
    assert all(phone in found for phone in PHONES)
    others = (bytes(32), b"\xff" * 32, b"", PHONES[0][:31], PHONES[0] + b"0", PHONES[0].hex())
    assert not any(other in found for other in others)
    assert sign([phone.hex().upper() for phone in reversed(PHONES)] + ["", PHONES[0].hex()], OPERATOR) == REGISTER


DAMAGED = {
    "empty": b"",
    "the first line alone": HEAD,
    "unsigned": REGISTER[:-129],
    "cut": REGISTER[:-1],
    "an identity more": HEAD + b"0" * 64 + b"\n" + REGISTER[len(HEAD) :],
    "an identity less": HEAD + REGISTER[len(HEAD) + 65 :],
    "another identity": REGISTER.replace(PHONES[0].hex().encode(), b"0" * 64),
    "no hexadecimal signature": REGISTER[:-129] + b"x" * 128 + b"\n",
    "no text": REGISTER[:-129] + b"\xff" * 129,
    "of another operator": sign([phone.hex() for phone in PHONES], OTHER),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_unsigned_or_foreign_register_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "register").write_bytes(content)
    with pytest.raises(ConfigError, match=r"register .*take it from the operator again"):
        read_register(tmp_path / "register", identity_of(OPERATOR))
    with pytest.raises(ConfigError, match="correct the path"):
        read_register(tmp_path / "missing", identity_of(OPERATOR))


def test_a_key_is_hexadecimal_or_a_file(tmp_path: Path) -> None:
    public, wrong = tmp_path / "operator.pub", tmp_path / "x25519.pub"
    public.write_bytes(pem(OPERATOR)[1])
    wrong.write_bytes(pem(X25519PrivateKey.generate())[1])
    assert operator_key(str(public)) == operator_key(identity_of(OPERATOR).hex()) == identity_of(OPERATOR)
    for text, remedy in ((str(wrong), "pkey -pubout"), (str(tmp_path), "name a file"), ("ab", "correct the path")):
        with pytest.raises(ConfigError, match=remedy):
            operator_key(text)
    with pytest.raises(ConfigError, match="openssl genpkey"):
        signing_key(public)


def test_phones_are_enrolled_by_commands(tmp_path: Path) -> None:
    def run(*words: object) -> str:
        result = CliRunner().invoke(app, list(map(str, words)))
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    key, identities, register = (tmp_path / name for name in ("operator.pem", "identities.txt", "register"))
    key.write_bytes(pem(OPERATOR)[0])
    found = [run("phone", "identity", tmp_path / name) for name in ("one", "two", "one")]
    assert found[0] == found[2] != found[1]
    identities.write_text("".join(found))
    operator = run("register", "sign", key, identities, "--out", register).strip()
    assert run("register", "verify", register, operator) == "2 phones are enrolled\n"
    assert all(bytes.fromhex(line) in read_register(register, identity_of(OPERATOR)) for line in found)
    identities.write_text("photo.jpg\n")
    result = CliRunner().invoke(app, ["register", "sign", str(key), str(identities), "--out", str(register)])
    assert "'photo.jpg' is not 64 hex digits" in str(result.exception)
