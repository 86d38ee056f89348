"""The memory command: a row a run, and the table's ratios to the fewest phones."""

import pytest

from benchmarks import memory
from benchmarks.memory import Memory, peak_of_run
from benchmarks.record import read_record
from benchmarks.results import PAGES
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, FedcaptorError


def test_rows_are_stored_and_ratios_are_to_the_fewest_phones(tmp_path, monkeypatch):
    file = tmp_path / "memory.json"

    def peak(overrides):
        phones = int(overrides[-1].rpartition("=")[2])
        if phones == 50:
            raise FedcaptorError("the run failed")
        return {"peak_rss_bytes": (1000 + phones) * 10**6, "seconds": 3.0, "cpu_seconds": 2.0}

    monkeypatch.setattr(memory, "peak_of_run", peak)
    with pytest.raises(FedcaptorError):
        Memory(phones="122,20,50", overrides=["run.seed=3"]).run(file)
    record = read_record(file)
    assert record.commands[0].endswith("--set run.seed=3 --json benchmarks/results/memory.json")
    assert record.settings["overrides"][-1] == "run.seed=3"
    text = PAGES["memory"](record).text
    assert "| 20 | 1,020 | 1.00 | 2 |\n| 122 | 1,122 | 1.10 | 2 |" in text


@pytest.mark.parametrize("wrong", ["", "many", "100,"])
def test_numbers_of_phones_are_checked(wrong):
    with pytest.raises(ConfigError, match="must be different whole numbers"):
        Memory(phones=wrong)


def test_what_no_run_would_take_is_refused_before_the_first():
    with pytest.raises(ConfigError, match=r"population\.phones"):
        Memory(phones="5,0")
    with pytest.raises(ConfigError, match="no_such_key"):
        Memory(phones="5", overrides=["run.no_such_key=1"])


def test_its_settings_are_keys_of_the_configuration():
    assert load_config(None, memory.SETTINGS).privacy.min_cohort == 20


@pytest.mark.long
def test_a_run_that_fails_is_an_error():
    with pytest.raises(FedcaptorError, match="ended with code 2"):
        peak_of_run(["run.no_such_key=1", "population.phones=5"])
