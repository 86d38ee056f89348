"""A manifest is what the operator signed, or an error."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedcaptor.common.catalogue.chunks import cut
from fedcaptor.common.catalogue.manifest import PAYLOAD_TYPE, FileEntry, Manifest, opened
from fedcaptor.common.errors import WireError
from fedcaptor.common.secure.dsse import pae
from tests.catalogue.serving import OPERATOR, PUBLIC, weights


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest(serial=7, files=(FileEntry.of("base.safetensors", cut(weights(tmp_path / "w", 1))),))


def sealed(payload: Any) -> bytes:
    """An envelope of any JSON that the operator signed."""
    text = json.dumps(payload).encode()
    signature = base64.b64encode(OPERATOR.sign(pae(PAYLOAD_TYPE, text))).decode()
    coded = base64.b64encode(text).decode()
    return json.dumps({"payloadType": PAYLOAD_TYPE, "payload": coded, "signatures": [{"sig": signature}]}).encode()


def test_it_comes_back(manifest: Manifest) -> None:
    assert opened(manifest.sealed(OPERATOR), PUBLIC) == manifest
    assert opened(sealed(json.loads(manifest.model_dump_json())), PUBLIC) == manifest


def test_a_signature_of_anything_else_is_refused(manifest: Manifest) -> None:
    envelope = json.loads(manifest.sealed(OPERATOR))
    stranger = Ed25519PrivateKey.generate()
    payload = base64.b64decode(envelope["payload"])
    other = base64.b64encode(payload.replace(b'"serial":7', b'"serial":8')).decode()
    for bad in (
        manifest.sealed(stranger),
        json.dumps(envelope | {"payload": other}).encode(),
        json.dumps(envelope | {"signatures": []}).encode(),
        json.dumps(
            envelope | {"signatures": [{"sig": base64.b64encode(OPERATOR.sign(payload)).decode()}]}
        ).encode(),  # of the payload without its type
    ):
        with pytest.raises(WireError, match="unsigned"):
            opened(bad, PUBLIC)


@pytest.mark.parametrize("bad", [b"", b"{", b"[]", b"7", b'{"payload": 3, "signatures": []}', b"\xff", b"[" * 100_000])
def test_no_envelope_is_an_error(bad: bytes) -> None:
    with pytest.raises(WireError, match="malformed"):
        opened(bad, PUBLIC)


def entry(**changes: Any) -> dict[str, Any]:
    return {"name": "a", "digest": "a" * 64, "size": 3, "chunks": [[3, "b" * 64]]} | changes


@pytest.mark.parametrize(
    "payload",
    [
        {"format": 2, "serial": 1, "files": []},
        {"format": 1, "serial": 0, "files": []},
        {"format": 1, "serial": 1, "files": [], "more": 1},
        *(
            {"format": 1, "serial": 1, "files": files}
            for files in (
                [entry(name="../a")],
                [entry(name=".hidden")],
                [entry(name="a/b")],
                [entry(name="")],
                [entry(digest="A" * 64)],
                [entry(size=4)],
                [entry(chunks=[[0, "b" * 64], [3, "b" * 64]])],
                [entry(chunks=[[(1 << 20) + 1, "b" * 64]], size=(1 << 20) + 1)],
                [entry(), entry()],
            )
        ),
    ],
)
def test_what_breaks_a_rule_is_refused_though_it_is_signed(payload: Any) -> None:
    with pytest.raises(WireError, match="malformed"):
        opened(sealed(payload), PUBLIC)
