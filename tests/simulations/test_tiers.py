"""Two device tiers in one population: no phone gets more than its tier allows, and the figures tell the tiers apart."""

import json

import pytest

from fedcaptor.client.folder import SUBMODEL_FILE
from fedcaptor.client.outcome import Outcome
from fedcaptor.common.config import parse
from fedcaptor.common.tiers import drawn
from fedcaptor.simulations.runner import simulate

LOW = {"name": "low", "share": 0.5, "macs": 0.15, "bytes": 120_000}
VALUES = {
    "population": {"phones": 20, "use_images": 20, "check_images": 15, "test_images": 20},
    "privacy": {"min_cohort": 20, "noise": False, "sums": "plain"},
    "visualise": {"enabled": False},
    "personal": {"ladder": [0.3], "reference": 6, "rows": 256},
    "scores": {"enabled": False},
    "planner": {"images": 60},
    "tiers": [LOW, {"name": "high", "share": 0.5}],
}


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    config = parse(VALUES)
    return directory, config, simulate(config, directory)


def test_no_phone_exceeds_its_tier(finished):
    directory, config, _ = finished
    low = [n for n in range(20) if drawn(config, n).name == "low"]
    assert 4 <= len(low) <= 20
    for number in low:
        folder = directory / "phones" / f"{number:06d}"
        note = Outcome.read(folder)
        assert note.macs <= LOW["macs"]
        assert (folder / SUBMODEL_FILE).stat().st_size <= LOW["bytes"]


def test_the_summary_tells_the_tiers_apart(finished):
    directory, _, summary = finished
    low, high = summary["tiers"]
    assert (low["name"], high["name"]) == ("low", "high")
    assert low["phones"] + high["phones"] == 20
    assert low["macs_ratio"] <= 0.15 < high["macs_ratio"]
    assert 0.5 < low["accuracy"]["mean"] <= 1
    details = json.loads((directory / "details.json").read_text())
    assert details["phones"]["tier"].count("low") == low["phones"]
    assert [c["tier"] for c in details["clusters"]] == ["low", "high"] * summary["clusters"]
    assert all(c["macs_ratio"] <= 0.15 for c in details["clusters"] if c["tier"] == "low")
    assert "cluster 0 low" in (directory / "report.html").read_text()
