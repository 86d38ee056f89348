"""The memory command: a row a run, and the table's ratios to the fewest phones."""

import pytest

from benchmarks import memory
from benchmarks.pages.memory import render
from benchmarks.record import read_record
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, FedcaptorError


def test_rows_are_stored_and_ratios_are_to_the_fewest_phones(tmp_path, monkeypatch):
    file = tmp_path / "memory.json"

    def measure(phones, settings):
        if phones == 50:
            raise FedcaptorError("the run failed")
        return {"peak_rss_bytes": (1000 + phones) * 10**6, "seconds": 3.0, "cpu_seconds": 2.0}

    monkeypatch.setattr(memory, "measure", measure)
    with pytest.raises(FedcaptorError):
        memory.command(file, "122,20,50", ["run.seed=3"])
    record = read_record(file)
    assert record.commands[0].endswith("--json benchmarks/results/memory.json --set run.seed=3")
    assert record.settings["overrides"][-1] == "run.seed=3"
    text = render(record).text
    assert "| 20 | 1,020 | 1.00 | 2 |\n| 122 | 1,122 | 1.10 | 2 |" in text


@pytest.mark.parametrize("wrong", ["", "many", "100,"])
def test_numbers_of_phones_are_checked(tmp_path, wrong):
    with pytest.raises(ConfigError, match="must be different whole numbers"):
        memory.command(tmp_path / "m.json", wrong)


def test_what_no_run_would_take_is_refused_before_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "measure", lambda *_: pytest.fail("ran"))
    with pytest.raises(ConfigError, match=r"population\.phones"):
        memory.command(tmp_path / "m.json", "5,0")
    with pytest.raises(ConfigError, match="no_such_key"):
        memory.command(tmp_path / "m.json", "5", ["run.no_such_key=1"])


def test_its_settings_are_keys_of_the_configuration():
    assert load_config(None, memory.SETTINGS).privacy.min_cohort == 20


@pytest.mark.slow
def test_a_run_that_fails_is_an_error():
    with pytest.raises(FedcaptorError, match="ended with code 2"):
        memory.measure(5, ["run.no_such_key=1"])
