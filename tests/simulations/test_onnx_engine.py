"""A run whose phones have ONNX Runtime gives the numbers of one whose phones have torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedcaptor.common.config import load_config
from fedcaptor.simulations.phones import GRAPH
from fedcaptor.simulations.runner import simulate
from tests import tiny


@pytest.mark.slow
def test_both_engines_give_the_same_figures(bars: tuple[Path, Path], tmp_path: Path) -> None:
    found, small = {}, ("privacy.sums=local", "population.phones=8", "fallback.outputs=all")
    for engine in ("torch", "onnx"):
        config = load_config(None, tiny.overrides(*bars, f"run.engine={engine}", *small))
        found[engine] = simulate(config, tmp_path / engine)
    theirs, mine = found.values()
    assert mine["accuracy"] == theirs["accuracy"]
    assert mine["macs_ratio"] == pytest.approx(theirs["macs_ratio"], rel=1e-9)
    assert (tmp_path / "onnx" / GRAPH).exists()
    assert not (tmp_path / "torch" / GRAPH).exists()
