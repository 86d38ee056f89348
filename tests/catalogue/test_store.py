"""What an operator publishes is there whole, under a growing number."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from fedcaptor.cli.main import app
from fedcaptor.common.errors import ConfigError, StateError
from fedcaptor.server.catalogue import store as module
from fedcaptor.server.catalogue.store import Store
from tests.catalogue.serving import OPERATOR, PUBLIC, prepare, random_file


def test_files_are_found_by_their_hash(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    made = store.add([random_file(tmp_path / "a.onnx", 100)], OPERATOR, 50)
    (entry,) = made.files
    path = store.path(f"blobs/{entry.digest}")
    assert path is not None
    assert hashlib.sha256(path.read_bytes()).hexdigest() == entry.digest
    assert store.manifest(PUBLIC) == made
    assert made.serial == 50


def test_the_serial_number_grows_whatever_the_clock_says(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), random_file(tmp_path / "a", 1)
    assert [store.add([file], OPERATOR, now).serial for now in (50.9, 10, 50, 70)] == [50, 51, 52, 70]


def test_a_new_version_takes_the_name_and_the_old_one_stays_for_one_manifest(tmp_path: Path) -> None:
    store, digests = Store(tmp_path / "store"), []
    other = random_file(tmp_path / "other", 9, seed=9)
    store.add([other], OPERATOR, 1)
    for seed in range(3):
        made = store.add([random_file(tmp_path / "a", 100, seed)], OPERATOR, 1)
        assert [entry.name for entry in made.files] == ["a", "other"]
        digests.append(made.files[0].digest)
    names = {path.name for path in (tmp_path / "store" / "blobs").iterdir()}
    assert names == {*digests[1:], hashlib.sha256(other.read_bytes()).hexdigest()}
    assert [entry.name for entry in store.add([], OPERATOR, 1, remove=["a"]).files] == ["other"]
    with pytest.raises(ConfigError, match="no file 'a': it has other"):
        store.add([], OPERATOR, 1, remove=["a"])


def test_another_key_does_not_continue_a_store(tmp_path: Path) -> None:
    store, file = Store(tmp_path / "store"), random_file(tmp_path / "a", 1)
    made = store.add([file], OPERATOR, 1)
    with pytest.raises(StateError, match="give the key that signed it"):
        store.add([file], Ed25519PrivateKey.generate(), 2)
    assert store.manifest(PUBLIC) == made


def test_what_cannot_be_added_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, file = Store(tmp_path / "store"), random_file(tmp_path / "a", 1)
    made = store.add([file], OPERATOR, 1)
    for path, reason in ((tmp_path / "none", "does not exist"), (random_file(tmp_path / "a b", 1), "cannot be a name")):
        with pytest.raises(ConfigError, match=reason):
            store.add([path], OPERATOR, 2)
    monkeypatch.setattr(module.os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ConfigError, match=r"No space left on device.*stays as it was"):
        store.add([random_file(tmp_path / "b", 5)], OPERATOR, 2)
    assert store.manifest(PUBLIC) == made
    assert len(list((tmp_path / "store" / "blobs").iterdir())) == 1


@pytest.mark.parametrize(
    "resource",
    ["", "blobs/", "blobs/../../etc/passwd", "/etc/passwd", "manifests/../lock", "blobs/" + "A" * 64, "lock",
     "blobs/" + "a" * 63, "blobs/" + "a" * 64 + "\n", "blobs/" + "a" * 65, "manifests/latest/", "latest.json"],
)  # fmt: skip
def test_nothing_else_is_a_resource(tmp_path: Path, resource: str) -> None:
    assert Store(tmp_path).path(resource) is None


def test_the_command_publishes_and_says_what(tmp_path: Path) -> None:
    prepare(tmp_path)
    file = random_file(tmp_path / "base.safetensors", 1000)
    given = ["catalogue", "add", str(tmp_path / "store"), str(file), "--key", str(tmp_path / "operator.pem")]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    assert f"{hashlib.sha256(file.read_bytes()).hexdigest()}  base.safetensors  1,000 bytes" in done.output
    assert Store(tmp_path / "store").manifest(PUBLIC) is not None
