"""Accuracy after each round, measured with the models that phones had then."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import fedcaptor
from fedcaptor.client.outcome import Outcome
from fedcaptor.common.assets import asset
from fedcaptor.common.config import load_config
from fedcaptor.simulations.oracle import Oracle
from fedcaptor.simulations.runner import simulate
from fedcaptor.simulations.summary import PHONE_COLUMNS
from tests import tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

DRIFT = (
    "run.rounds=2",
    "population.phones=20",
    "population.drift_round=2",
    "population.drift_share=1",
    "usage.half_life=1",
    "privacy.noise=false",
    "scores.enabled=false",
    "personal.ladder=[0.6]",
)


@pytest.fixture(scope="module")
def sets(bars: tuple[Path, Path]) -> list[str]:
    return tiny.overrides(*bars, *DRIFT)


@pytest.fixture(scope="module")
def finished(sets: list[str], tmp_path_factory: pytest.TempPathFactory) -> fedcaptor.Run:
    return fedcaptor.simulate(None, sets, out=tmp_path_factory.mktemp("drift") / "run", progress=False)


def test_each_round_is_measured_with_its_own_models(
    finished: fedcaptor.Run, sets: list[str], bars: tuple[Path, Path]
) -> None:
    first, last = finished.record["accuracy_by_round"]
    assert [first["round"], last["round"]] == [1, 2]
    assert {name: last[name] for name in ("full", "submodel", "personalised")} == {
        name: finished.record["accuracy"][name]["mean"] for name in ("full", "submodel", "personalised")
    }
    oracle = Oracle(finished.folder, load_config(None, sets), tiny.base_model(bars[1]), [])
    late = [oracle.phone(number, 1) for number in range(20)]
    assert first["full"] == pytest.approx(np.nanmean([found.accuracy_full for found in late]))
    assert first["submodel"] > 0.7 > np.nanmean([found.accuracy_submodel for found in late])  # of other classes by now
    columns = ["accuracy_full", "accuracy_submodel", "accuracy_personalised"]
    assert finished.rounds[columns].to_numpy().tolist() == [
        [each["full"], each["submodel"], each["personalised"]] for each in (first, last)
    ]
    notes = [Outcome.read(finished.folder / "phones" / f"{number:06d}") for number in range(20)]
    drifted = np.mean([note is not None and note.drifted for note in notes])
    assert drifted > 0.4
    assert finished.rounds["drifted"].tolist() == pytest.approx([0, drifted])
    assert "Accuracy after each round" in (finished.folder / "report.html").read_text()


def test_a_replay_measures_no_round_that_phones_have_left(
    finished: fedcaptor.Run, sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    monkeypatch.setattr("fedcaptor.simulations.runner.measure", lambda world, round, _: measured.append(round))
    again = simulate(load_config(None, sets), finished.folder)
    assert again["accuracy_by_round"] == finished.record["accuracy_by_round"]
    (finished.folder / "oracle" / "accuracy-1.json").unlink()
    again = simulate(load_config(None, sets), finished.folder)
    assert again["accuracy_by_round"] == [{"round": 1}, finished.record["accuracy_by_round"][1]]
    assert measured == [2, 2]


def test_a_row_for_each_phone(finished: fedcaptor.Run) -> None:
    with (finished.folder / "phones.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["phone"]) for row in rows] == list(range(20))
    assert set(rows[0]) == set(PHONE_COLUMNS)
    alone = [float(row["accuracy_submodel"]) for row in rows if row["accuracy_submodel"]]
    assert np.mean(alone) == pytest.approx(finished.record["accuracy"]["submodel"]["mean"])
    for row in rows:
        assert (row["kind"] == "full") == (row["macs_ratio"] == "1.0")
        if row["kind"] == "full":
            assert row["accuracy_submodel"] == row["accuracy"]
        assert 1 <= len(row["own_classes"].split("; ")) <= 2
    details = json.loads((finished.folder / "details.json").read_text())["phones"]
    assert [float(row["macs_ratio"]) for row in rows] == details["macs_ratio"]
    assert 'href="phones.csv"' in (finished.folder / "report.html").read_text()


def test_every_column_of_a_phone_is_documented() -> None:
    page = asset("docs/outputs.md").read_text()
    for column, meaning in PHONE_COLUMNS.items():
        assert f"| `{column}` | {meaning} |" in page
