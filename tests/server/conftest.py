"""The state database in both kinds, PostgreSQL on a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgresql import PostgreSQL, running


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new, empty state database."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql").create()
    return f"sqlite:///{tmp_path / 'state.db'}"
