"""Rows on disk: what is finished is not measured again, and rows that cannot be compared never share a file."""

import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.record import machine, numbers, open_record, read_record, rounded, sweep
from fedcaptor.common.errors import ConfigError, StateError

KEYS = [{"arm": arm, "seed": seed} for seed in (0, 1) for arm in ("a", "b")]


def run(path, keys, measured, settings=None, fail_at=None):
    record = open_record(path, "fake", settings or {"phones": 24}, "the command")

    def measure(key):
        if key == fail_at:
            raise KeyboardInterrupt
        measured.append(dict(key))
        return {"accuracy": 0.5}

    sweep(record, path, keys, measure)
    return record


def test_a_finished_row_is_not_measured_again(tmp_path):
    path, measured = tmp_path / "rows.json", []
    run(path, KEYS, measured)
    assert measured == KEYS
    run(path, [*KEYS, {"arm": "a", "seed": 2}], measured)
    assert measured == [*KEYS, {"arm": "a", "seed": 2}]
    assert [(row["arm"], row["seed"]) for row in read_record(path).rows] == [(k["arm"], k["seed"]) for k in measured]


def test_an_interruption_costs_the_row_in_flight_alone(tmp_path):
    path, measured = tmp_path / "rows.json", []
    with pytest.raises(KeyboardInterrupt):
        run(path, KEYS, measured, fail_at=KEYS[2])
    assert len(read_record(path).rows) == 2
    run(path, KEYS, measured)
    assert measured == KEYS


def test_rows_of_other_settings_are_refused_and_kept(tmp_path):
    path = tmp_path / "rows.json"
    run(path, KEYS, [])
    before = path.read_bytes()
    with pytest.raises(StateError, match=r"phones: 24, now 100.*--fresh"):
        open_record(path, "fake", {"phones": 100}, "the command")
    with pytest.raises(StateError, match="differ in benchmark"):
        open_record(path, "other", {"phones": 24}, "the command")
    assert path.read_bytes() == before
    assert open_record(path, "fake", {"phones": 100}, "the command", fresh=True).rows == []


def test_rows_of_another_machine_are_refused(tmp_path):
    path = tmp_path / "rows.json"
    run(path, KEYS, [])
    stored = json.loads(path.read_text())
    stored["machine"]["cpu"] = "abacus"
    path.write_text(json.dumps(stored))
    with pytest.raises(StateError, match="cpu: abacus"):
        open_record(path, "fake", {"phones": 24}, "the command")


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"rows": []}')
    with pytest.raises(StateError, match="choose another --json"):
        read_record(path)


def test_the_machine_has_no_name():
    assert set(machine()) == {"cores", "cpu", "python", "torch"}
    assert socket.gethostname() not in json.dumps(machine())


@given(st.lists(st.integers(0, 999), min_size=1, unique=True))
def test_numbers_are_read_as_written(values):
    assert numbers(",".join(map(str, values))) == values


@pytest.mark.parametrize(("text", "values"), [("0..2", [0, 1, 2]), ("3..3", [3]), ("100, 30,12", [100, 30, 12])])
def test_ranges_and_lists(text, values):
    assert numbers(text) == values


@pytest.mark.parametrize("text", ["", "2..0", "a", "1,1", "-1", "1..", "1.5"])
def test_no_numbers(text):
    with pytest.raises(ConfigError, match="whole numbers"):
        numbers(text)


def test_rounding_keeps_six_digits_and_whole_numbers():
    assert rounded({"a": 0.123456789, "b": 1234567, "c": None}) == {"a": 0.123457, "b": 1234567, "c": None}
