import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import tiny

# A busy machine is no fault of what is tested.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with tests of real processes: they mostly wait, and beside them the other worker does the rest."""
    items.sort(key=lambda item: "integration" not in item.path.parts)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks run slower on many threads, much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def bars(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data and weights of the tiny world."""
    return tiny.write(tmp_path_factory.mktemp("bars"))
