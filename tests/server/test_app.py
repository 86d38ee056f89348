"""The settings of the deployed server: what is secret does not travel, and what is wrong is said."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedcaptor.common.assets import asset
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.secure.keys import identity_of
from fedcaptor.server.app import Settings
from fedcaptor.simulations.runner import SHIPPED
from tests.common.secure_cohort import identity

SECRET = "hunter2"
URL = f"postgresql://fedcaptor:{SECRET}@db.example/state"


@pytest.fixture
def run_config(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "config.toml").write_text("")
    return {"config": str(tmp_path / "config.toml"), "folder": str(tmp_path), "weights": str(SHIPPED)}


def test_the_state_databases_url_is_the_servers_own(
    run_config: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDCAPTOR_STATE", raising=False)
    assert Settings.of(run_config).state == f"sqlite:///{tmp_path / 'state.db'}"
    monkeypatch.setenv("FEDCAPTOR_STATE", URL)
    found = Settings.of(run_config)
    assert found.state == URL
    assert SECRET not in repr(found)
    monkeypatch.setenv("FEDCAPTOR_STATE", f"{URL}?schema={{run}}")
    assert Settings.of({**run_config, "name": "run-0001"}).state == f"{URL}?schema=run-0001"
    with pytest.raises(ConfigError, match=r"every phone receives: leave it out, .* FEDCAPTOR_STATE") as error:
        Settings.of({**run_config, "state": URL})
    assert SECRET not in str(error.value)


def test_nothing_that_phones_receive_is_secret() -> None:
    """Flower sends an app's files and its run configuration to every client process, and takes no key but the app's."""
    files = [path for path in asset("deploy/flower-app").rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["pyproject.toml"]
    keys = set(tomllib.loads(files[0].read_text())["tool"]["flwr"]["app"]["config"])
    paths, words = {"config", "folder", "weights", "reference", "register"}, {"name", "nodes", "operator", "rounds"}
    assert keys == paths | words


def test_deliveries_are_signed_by_the_configured_operator_alone(
    run_config: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDCAPTOR_SIGNING_KEY", raising=False)
    key, known = identity("operator"), identity_of(identity("operator")).hex()
    assert Settings.of({**run_config, "operator": known}).operator is None
    path = tmp_path / "operator.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    monkeypatch.setenv("FEDCAPTOR_SIGNING_KEY", str(path))
    for more in ({}, {"operator": known}):
        found = Settings.of({**run_config, **more}).operator
        assert found is not None
        assert identity_of(found).hex() == known
    with pytest.raises(ConfigError, match=f"key of {known}, the run configuration's operator is {'0' * 64}: .* give"):
        Settings.of({**run_config, "operator": "0" * 64})
    path.write_text("nothing")
    with pytest.raises(ConfigError, match="no private Ed25519 key"):
        Settings.of(run_config)


def test_a_run_without_a_last_round_is_started_for_some(run_config: dict[str, str], tmp_path: Path) -> None:
    assert [Settings.of({**run_config, "rounds": rounds}).rounds for rounds in (0, 3)] == [0, 3]
    with pytest.raises(ConfigError, match="rounds is -1"):
        Settings.of({**run_config, "rounds": -1})
    (tmp_path / "config.toml").write_text("[run]\nrounds = 0\n[privacy]\nrounds_per_period = 4\n")
    assert Settings.of({**run_config, "rounds": 1}).rounds == 1
    with pytest.raises(ConfigError, match=r"rounds is 0, .* with run\.rounds 0, .* at least 1"):
        Settings.of(run_config)
