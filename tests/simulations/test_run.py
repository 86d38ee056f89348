"""The whole way on a small population, with faults, and what a restart finds."""

import json
import re

import pytest

from fedcaptor.common.assets import asset
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import PrivacyError, StateError
from fedcaptor.simulations import records
from fedcaptor.simulations.rounds import read_rows
from fedcaptor.simulations.runner import build_world, simulate
from tests import tiny

SMALL = [
    "population.phones=20",
    "population.use_images=30",
    "population.check_images=20",
    "population.test_images=30",
    "privacy.min_cohort=20",
    "privacy.noise=false",
    "visualise.enabled=false",
    "personal.ladder=[0.3]",
    "personal.reference=10",
    "personal.rows=256",
    "planner.images=60",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    return directory, simulate(load_config(None, SMALL), directory)


@pytest.mark.slow
def test_phones_end_with_smaller_models_that_know_their_classes(finished):
    directory, summary = finished
    assert summary["phones"] == 20
    assert summary["macs_ratio"] < 0.6
    assert summary["accuracy"]["personalised"]["mean"] > summary["accuracy"]["full"]["mean"]
    assert summary["privacy"]["epsilon"] is None
    assert "noise off" in summary["marks"]
    assert "tiers" not in summary
    assert (directory / "report.html").stat().st_size > 10_000
    assert json.loads((directory / "snapshot.json").read_text())["status"] == "ended"


def flat(value, prefix=""):
    """Dotted keys of nested objects."""
    if not isinstance(value, dict):
        return {prefix}
    return {key for name, inner in value.items() for key in flat(inner, f"{prefix}.{name}" if prefix else name)}


@pytest.mark.slow
def test_every_figure_and_file_of_a_run_is_documented(finished):
    directory, summary = finished
    files, keys = asset("docs/outputs.md").read_text().split("## Keys")
    documented = set(re.findall(r"^\| `([^`]+)` \|", keys.split("## rounds.csv")[0], re.M))
    assert flat(summary) == documented - {"faults.*", "looks"}
    assert {path.name for path in directory.iterdir()} <= set(re.findall(r"^\| `([^`]+)` \|", files, re.M))


@pytest.mark.slow
def test_files_of_a_run_are_read_as_they_were_written(finished, tmp_path):
    directory, summary = finished
    for name, kind in ((records.SUMMARY, records.Summary), (records.DETAILS, records.Details)):
        records.write(tmp_path / name, records.read(directory / name, kind))
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes()
    assert summary == json.loads((directory / records.SUMMARY).read_text())


@pytest.mark.slow
def test_rounds_are_the_same_in_every_output(finished):
    directory, summary = finished
    (row,) = read_rows(directory / "rounds.csv")
    details = json.loads((directory / "details.json").read_text())
    assert row == {name: "" if value is None else str(value) for name, value in details["rounds"][0].items()}
    assert (int(row["clusters"]), row["epsilon"]) == (summary["clusters"], "")
    assert int(row["bytes_down"]) == sum(phase["bytes_down"] for phase in details["phases"])
    figures = details["phones"]
    assert float(row["macs"]) == pytest.approx(sum(figures["macs_ratio"]) / 20, abs=0.02)  # noise is off
    assert sum(details["scores"]["outside"]) > 0


@pytest.mark.slow
def test_a_second_call_replays_the_journal(finished):
    directory, summary = finished
    again = simulate(load_config(None, SMALL), directory)
    assert again["accuracy"] == summary["accuracy"]


@pytest.mark.slow
def test_another_configuration_is_refused(finished):
    directory, _ = finished
    with pytest.raises(StateError, match="another configuration"):
        simulate(load_config(None, [*SMALL, "run.seed=1"]), directory)


@pytest.mark.slow
def test_a_run_survives_dropped_and_malformed_replies(bars, tmp_path):
    faults = ["faults.dropout=0.2", "faults.malformed=0.05", "population.phones=40", "privacy.dropout=0.3"]
    summary = simulate(load_config(None, tiny.overrides(*bars, *faults)), tmp_path)
    assert summary["phones"] == 40
    assert summary["faults"]["dropped"] > 0
    assert summary["faults"]["refused"] > 0


@pytest.mark.slow
def test_too_small_a_cohort_is_refused(tmp_path):
    with pytest.raises(PrivacyError, match="min_cohort"):
        simulate(load_config(None, [*SMALL, "population.phones=10"]), tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"run": {"se', b"\xff", b"[" * 99_999])
def test_a_stored_configuration_that_is_damaged_is_said_to_be(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(StateError, match=r"config\.json cannot be read .*: remove"):
        build_world(load_config(None, SMALL), tmp_path)


@pytest.mark.slow
def test_a_run_stored_by_an_earlier_schema_is_the_same_run(tmp_path):
    """Its file has a key's former name, and lacks the keys that came later."""
    config = load_config(None, [*SMALL, "faults.malformed=0.05"])
    build_world(config, tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["faults"]["rubbish"] = stored["faults"].pop("malformed")
    del stored["scores"]["shrink"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    build_world(config, tmp_path)
    with pytest.raises(StateError, match="another configuration"):
        build_world(load_config(None, [*SMALL, "faults.malformed=0.1"]), tmp_path)
