"""Programs are measured on a device: a full, a pruned and an eight-bit one. Emulated, times mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedcaptor.client.onnx_engine import OnnxEngine
from fedcaptor.common.data.source import load
from fedcaptor.common.planner import Budget, allocate
from tests.android.fleet import Fleet

pytestmark = [pytest.mark.android, pytest.mark.timeout(1800)]

PARTS = (slice(8), slice(8, 40))
"""Which images of a class the accuracy is measured on, and which the submodel is made of."""


def test_full_pruned_and_eight_bit_programs_are_measured(installed: Fleet, tmp_path: Path) -> None:
    engine = OnnxEngine.of(installed.deployment.graph, installed.deployment.weights)
    shown, classes = load("embedded"), np.array([0, 1])
    first, more = (np.concatenate([np.flatnonzero(shown.y == label)[part] for label in classes]) for part in PARTS)
    evidence = engine.observe(classes, shown.x[more], rows=512)
    pruned = evidence.build(allocate(engine.groups, evidence.curves, classes, Budget(macs=0.3)))
    quantised = engine.quantised(pruned, shown.x[more])
    assert quantised is not None
    models = []
    for name, submodel in {"full": engine.whole(), "pruned": pruned, "int8": quantised}.items():
        models.append(tmp_path / f"{name}.onnx")
        models[-1].write_bytes(engine.program(submodel))
    data = tmp_path / "labelled.npz"
    np.savez_compressed(data, x=shown.x[first], y=shown.y[first])

    (found,) = installed.say("bench", *models, "--data", data, numbers=(0,))
    here = [sys.executable, "-m", "fedcaptor.client.measure", "--json", "--seconds", "0", "--data", data, *models]
    expected = json.loads(subprocess.run(here, capture_output=True, text=True, check=True).stdout)
    rows = found["rows"]
    assert [row["model"] for row in rows] == [model.name for model in models]
    assert [row["precision"] for row in rows] == ["float32", "float32", "int8"]
    for row, other in zip(rows, expected, strict=True):
        assert row["accuracy"] == pytest.approx(other["accuracy"], abs=1 / len(first))  # rounding may turn one image
        assert row["accuracy"] > 0.7
        assert row["latency_ms_median"] > 0
        assert row["peak_rss_bytes"] > row["loaded_rss_bytes"] > 0
    assert rows[1]["cpu_ms_median"] < rows[0]["cpu_ms_median"]  # a third of the arithmetic
    assert not (installed.home(0) / "tmp" / "bench").exists()
