"""The settings of the deployed server: what is secret does not travel, and what is wrong is said."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fedcaptor.common.assets import asset
from fedcaptor.common.errors import ConfigError
from fedcaptor.server.app import Settings
from fedcaptor.simulations.runner import SHIPPED

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
    with pytest.raises(ConfigError, match=r"every phone receives: leave it out, .* FEDCAPTOR_STATE") as error:
        Settings.of({**run_config, "state": URL})
    assert SECRET not in str(error.value)


def test_nothing_that_phones_receive_is_secret() -> None:
    """Flower sends an app's files and its run configuration to every client process, and takes no key but the app's."""
    files = [path for path in asset("deploy/flower-app").rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["pyproject.toml"]
    keys = set(tomllib.loads(files[0].read_text())["tool"]["flwr"]["app"]["config"])
    paths, words = {"config", "folder", "weights", "reference", "register"}, {"name", "nodes", "operator"}
    assert keys == paths | words
