"""The personal step's cost: figures of a process of its own, and their table."""

import pytest

from benchmarks.phone import Phone
from benchmarks.record import read_record
from benchmarks.results import PAGES


@pytest.mark.long
def test_a_row_and_its_table(tmp_path):
    file = tmp_path / "phone.json"
    Phone(models="small-cnn", images="12", macs=0.5).run(file)
    record = read_record(file)
    (row,) = record.rows
    assert 0 < row["macs_ratio"] <= 0.5
    assert row["evidence_seconds"] > 0
    assert row["submodel_seconds"] > 0
    assert row["loaded_rss_bytes"] > row["added_rss_bytes"] > 0
    (line,) = [line for line in PAGES["phone"](record).text.splitlines() if line.startswith("| small-cnn")]
    assert line.split(" | ")[1] == "12"
