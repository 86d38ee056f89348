"""A run whose phones have ONNX Runtime gives the numbers of one whose phones have torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedcaptor.common.config import load_config
from fedcaptor.simulations.phones import GRAPH
from fedcaptor.simulations.runner import simulate
from tests import tiny


@pytest.mark.slow
def test_both_engines_give_the_same_figures(bars: tuple[Path, Path], tmp_path: Path) -> None:
    found, small = {}, ("privacy.sums=local", "population.phones=8", "fallback.outputs=all")
    for engine in ("torch", "onnx", "onnx int8"):
        runs, _, precision = engine.partition(" ")
        sets = (f"run.engine={runs}", f"personal.precision={precision or 'float32'}", *small)
        found[engine] = simulate(load_config(None, tiny.overrides(*bars, *sets)), tmp_path / engine)
    theirs, mine, in_int8 = found.values()
    wanted = mine["accuracy"]["personalised"]["mean"]
    assert in_int8["accuracy"]["personalised"]["mean"] == pytest.approx(wanted, abs=0.05)
    assert in_int8["macs_ratio"] == pytest.approx(mine["macs_ratio"], rel=1e-9)
    notes = [json.loads(path.read_text()) for path in (tmp_path / "onnx int8" / "phones").glob("*/outcome.json")]
    assert "int8" in {note["precision"] for note in notes if note["plan"]}
    assert mine["accuracy"] == theirs["accuracy"]
    assert mine["macs_ratio"] == pytest.approx(theirs["macs_ratio"], rel=1e-9)
    assert (tmp_path / "onnx" / GRAPH).exists()
    assert not (tmp_path / "torch" / GRAPH).exists()
