"""The personal step's cost: figures of a process of its own, and their table."""

from benchmarks import phone
from benchmarks.pages.phone import render
from benchmarks.record import read_record


def test_a_row_and_its_table(tmp_path):
    file = tmp_path / "phone.json"
    phone.command(file, models="small-cnn", images="12", macs=0.5)
    record = read_record(file)
    (row,) = record.rows
    assert 0 < row["macs_ratio"] <= 0.5
    assert row["evidence_seconds"] > 0
    assert row["submodel_seconds"] > 0
    assert row["loaded_rss_bytes"] > row["added_rss_bytes"] > 0
    (line,) = [line for line in render(record).text.splitlines() if line.startswith("| small-cnn")]
    assert line.split(" | ")[1] == "12"
