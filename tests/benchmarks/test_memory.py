"""The memory command: ratios to the first row, a file after every row."""

import json

import pytest

from benchmarks import memory
from common.config import load_config
from common.errors import ConfigError, FedcaptorError


def test_ratios_are_to_the_first_row_and_each_row_is_stored(tmp_path, monkeypatch):
    file = tmp_path / "memory.json"

    def measured(phones, settings):
        if phones == 50:
            assert json.loads(file.read_text())["rows"][0]["phones"] == 20
            raise FedcaptorError("the run failed")
        return {"phones": phones, "peak_rss_bytes": 1000 + phones}

    monkeypatch.setattr(memory, "_measured", measured)
    with pytest.raises(FedcaptorError):
        memory.memory(file, "20,122,50", ["run.seed=3"])
    stored = json.loads(file.read_text())
    assert [row["ratio"] for row in stored["rows"]] == [1.0, 1.1]
    assert stored["settings"][-1] == "run.seed=3"


@pytest.mark.parametrize("wrong", ["", "many", "0,5", "100,"])
def test_numbers_of_phones_are_checked(tmp_path, wrong):
    with pytest.raises(ConfigError, match="must be numbers from 1"):
        memory.memory(tmp_path / "m.json", wrong)


def test_its_settings_are_keys_of_the_configuration():
    load_config(None, memory.SETTINGS)


def test_a_run_that_fails_is_an_error():
    with pytest.raises(FedcaptorError, match="ended with code 2"):
        memory._measured(5, ["run.no_such_key=1"])
