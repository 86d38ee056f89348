"""Masked sums over Flower's own engine: of thirty nodes two are lost in each step, the sums of the others are exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcaptor.common.assets import asset
from fedcaptor.common.config import load_config
from fedcaptor.common.secure.messages import MASKING, STEPS
from fedcaptor.server.journal import Journal
from fedcaptor.simulations import runner
from fedcaptor.simulations.ray_engine import simulate_ray
from tests import tiny
from tests.integration.leaving_app import LEAVING, Leaving

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

NODES = 30
APP = """
[project]
name = "leaving"
version = "0.1.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "fedcaptor"
[tool.flwr.app.components]
serverapp = "fedcaptor.simulations.flower_app:server_app"
clientapp = "tests.integration.leaving_app:client_app"
[tool.flwr.app.config]
scenario = ""
set = ""
out = ""
nodes = 0
"""
MORE = [
    "privacy.min_cohort=20",
    "privacy.dropout=0.4",
    "clusters.iterations=1",
    "scores.enabled=false",
    "personal.ladder=[0.6]",
    "rounds.attempts=1",
]


def sums(directory: Path) -> dict[str, tuple[Any, np.ndarray]]:
    """Tally and total of each sum, by phase."""
    run = json.loads((directory / "snapshot.json").read_text())["run"]
    journal = Journal(f"sqlite:///{directory / 'state.db'}", run)
    try:
        stored = {name: journal.stored(round, name) for round, name in journal.seconds()}
    finally:
        journal.close()
    totals = {name: found for name, found in stored.items() if found and found[1].keys() == {"total"}}
    return {name: (outcome["tally"], tensors["total"]) for name, (outcome, tensors) in totals.items()}


def test_sums_are_exact_when_flowers_nodes_are_lost_in_every_step(
    bars: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.overrides(*bars, *MORE)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "pyproject.toml").write_text(APP)
    monkeypatch.setenv("PYTHONPATH", str(asset("pyproject.toml").parent))
    simulate_ray(None, settings, tmp_path / "ray", NODES, lambda line: None, tmp_path / "app")

    whole = runner.simulated_phone
    monkeypatch.setattr(runner, "simulated_phone", lambda *world: Leaving(whole(*world), world[-1]))
    config = load_config(None, [*settings, f"population.phones={NODES}"])
    runner.simulate(config, tmp_path / "local")
    on_flower, local = sums(tmp_path / "ray"), sums(tmp_path / "local")
    assert on_flower.keys() == local.keys() == {"usage-0", "usage-1", "outcome-0"}
    for name, (tally, total) in on_flower.items():
        assert (tally["replies"], tally["dropped"]) == (NODES - LEAVING * (MASKING + 1), LEAVING * STEPS)
        np.testing.assert_array_equal(total, local[name][1], err_msg=name)
