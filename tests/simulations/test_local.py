"""A run without cohorts, on fewer phones than any sum allows: what it gives, what it says is not there."""

from __future__ import annotations

import json

import pytest

from fedcaptor.client.ledger import Ledger
from fedcaptor.common.config import load_config
from fedcaptor.server.exporter import start_exporter
from fedcaptor.server.snapshot import FILE, read
from fedcaptor.simulations.rounds import FLEET, read_rows
from fedcaptor.simulations.runner import simulate
from tests import tiny

pytestmark = pytest.mark.slow

PHONES = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    data, weights = tiny.write(folder / "tiny")
    overrides = ["privacy.sums=local", f"population.phones={PHONES}", "run.rounds=2", "privacy.min_cohort=50"]
    config = load_config(None, tiny.overrides(data, weights, *overrides))
    return config, folder / "run", simulate(config, folder / "run")


def test_epsilon_is_that_of_one_answer_towards_everybody(run):
    _, folder, summary = run
    privacy = summary["privacy"]
    assert privacy["epsilon"] == privacy["epsilon_server"] == pytest.approx(8)
    assert (privacy["delta"], privacy["mode"], privacy["sums"]) == (0.0, "local", 1)
    assert "local answers" in summary["marks"]
    for number in range(PHONES):
        with Ledger(folder / "phones" / f"{number:06d}" / "phone.db", delta=1e-5, budget_epsilon=8.0) as ledger:
            assert [charge.kind for charge in ledger.entries()] == ["local"]  # of two rounds
            assert ledger.spent() == pytest.approx(privacy["epsilon"])


def test_phones_end_with_smaller_models(run):
    _, _, summary = run
    assert summary["macs_ratio"] < 0.9
    assert summary["accuracy"]["personalised"]["mean"] > 0.6


def test_fleet_figures_are_absent_everywhere(run):
    _, folder, _ = run
    rows = read_rows(folder / "rounds.csv")
    assert [row["epsilon"][:3] for row in rows] == ["7.9", "7.9"]
    assert all(row[name] == "" for row in rows for name in FLEET)
    details = json.loads((folder / "details.json").read_text())
    assert [(each["name"], each["length"]) for each in details["sums"]] == [("1-usage-0", 21)]
    assert [(p["round"], p["phase"]) for p in details["phases"] if p["asked"]] == [
        (1, "usage-0"), (1, "deliver"), (2, "deliver"),
    ]  # fmt: skip
    snapshot = read(folder / FILE)
    assert (snapshot.fleet.macs_ratio, snapshot.fleet.agreement_ratio, snapshot.delta) == (None, None, 0.0)
    assert snapshot.fleet.download_ratio is not None
    assert all(cluster.phones.stddev > 0 for cluster in snapshot.clusters)
    report = (folder / "report.html").read_text()
    assert "private by itself" in report
    assert "not collected with local answers" in report


def test_the_exporter_serves_what_there_is(run):
    import urllib.request

    with start_exporter(run[1], port=0) as exporter, urllib.request.urlopen(exporter.url, timeout=10) as reply:
        text = reply.read().decode()
    run = run[1].name
    assert f'fedcaptor_privacy_noise_enabled{{run="{run}"}} 1.0' in text
    assert f'fedcaptor_privacy_delta{{run="{run}"}} 0.0' in text
    assert f'fedcaptor_mark{{mark="local answers",run="{run}"}} 1.0' in text
    assert "fedcaptor_fleet_macs_ratio" not in text


def test_a_second_call_replays_the_journal(run):
    config, folder, summary = run
    assert simulate(config, folder)["accuracy"] == summary["accuracy"]
