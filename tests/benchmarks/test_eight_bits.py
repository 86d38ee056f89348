"""Eight bits beside single precision: rows for the full model and for submodels, and their table."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.eight_bits import EightBits
from benchmarks.record import read_record
from benchmarks.results import PAGES
from tests import tiny


@pytest.mark.slow
def test_rows_and_their_table(bars: tuple[Path, Path], tmp_path: Path) -> None:
    data, weights = bars
    file = tmp_path / "eight_bits.json"
    own = {"model": tiny.MODEL, "weights": weights, "data": str(data), "classes": "2", "macs": 0.9}
    EightBits(**own, draws=2, images=20, repetitions=3).run(file)
    record = read_record(file)
    found = [(row["whole"], len(row["classes"])) for row in record.rows]
    assert found == [(True, tiny.CLASSES), (False, 2), (False, 2)]
    for row in record.rows:
        assert row["int8_bytes"] > 0
        assert row["file_bytes"] < row["single_bytes"]
        assert row["agreement"] > 0.9
        assert row["speedup"] == pytest.approx(row["seconds"] / row["int8_seconds"], rel=1e-4)
    lines = [line for line in PAGES["eight_bits"](record).text.splitlines() if line.startswith(f"| {tiny.MODEL}")]
    assert [line.split(" | ")[1] for line in lines] == ["full", "2 submodels, 2 classes"]
