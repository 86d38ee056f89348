"""A deployment of two phones, made once, and copies of it to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.deployment import free_port
from fedcaptor.deploy.create import Wanted, create
from fedcaptor.deploy.folder import Deployment


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return create(tmp_path_factory.mktemp("deployment") / "own", Wanted(2, port=free_port(), demo=True))


@pytest.fixture
def deployment(made: Deployment, tmp_path: Path) -> Deployment:
    return Deployment.open(Path(shutil.copytree(made.root, tmp_path / "copy")))
