"""Programs are measured on a device: a full, a pruned and an eight-bit one. Emulated, times mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedcaptor.common.data.source import load
from tests.android.fleet import Fleet, fedcaptor

pytestmark = [pytest.mark.android, pytest.mark.timeout(1800)]


def test_full_pruned_and_eight_bit_programs_are_measured(installed: Fleet, tmp_path: Path) -> None:
    weights = installed.deployment.weights
    models = [tmp_path / f"{name}.onnx" for name in ("full", "pruned", "int8")]
    words = ("prune", "small-cnn", "--weights", weights, "--classes")
    fedcaptor(*words, "0,1,2,3,4,5,6,7,8,9", "--macs", 1.0, "--out", models[0])
    fedcaptor(*words, "0,1", "--macs", 0.3, "--out", models[1])
    fedcaptor(*words, "0,1", "--macs", 0.3, "--int8", "--out", models[2])
    data = tmp_path / "labelled.npz"
    shown = load("embedded")
    chosen = np.concatenate([np.flatnonzero(shown.y == label)[:8] for label in (0, 1)])
    np.savez_compressed(data, x=shown.x[chosen], y=shown.y[chosen])
    (found,) = installed.say("bench", *models, "--data", data, numbers=(0,))
    here = [sys.executable, "-m", "fedcaptor.client.measure", "--json", "--seconds", "0", "--data", data, *models]
    expected = json.loads(subprocess.run(here, capture_output=True, text=True, check=True).stdout)
    rows = found["rows"]
    assert [row["model"] for row in rows] == [model.name for model in models]
    assert [row["precision"] for row in rows] == ["float32", "float32", "int8"]
    for row, other in zip(rows, expected, strict=True):
        assert row["accuracy"] == pytest.approx(other["accuracy"], abs=1 / len(chosen))  # rounding may turn one image
        assert row["accuracy"] > 0.7
        assert row["latency_ms_median"] > 0
        assert row["peak_rss_bytes"] > row["loaded_rss_bytes"] > 0
    assert rows[1]["cpu_ms_median"] < rows[0]["cpu_ms_median"]  # a third of the arithmetic
    assert not (installed.home(0) / "tmp" / "bench").exists()
