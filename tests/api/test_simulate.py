"""Runs from Python: frames, folders, resumption, and that what is quiet stays quiet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedcaptor
from fedcaptor.common.config import Config
from tests import tiny

QUICK = ("privacy.noise=false", "scores.enabled=false", "population.phones=20", "personal.ladder=[0.6]")


@pytest.fixture(scope="module")
def texts(bars: tuple[Path, Path]) -> list[str]:
    return tiny.overrides(*bars, *QUICK)


@pytest.fixture(scope="module")
def sweep(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> fedcaptor.Run:
    return fedcaptor.simulate(None, texts, seeds=range(2), out=tmp_path_factory.mktemp("sweep"), progress=False)


@pytest.mark.slow
def test_frames_have_a_row_for_each_seed_phone_and_round(sweep: fedcaptor.Run) -> None:
    assert (sweep.seeds, sweep.is_sweep) == ((0, 1), True)
    assert sweep.summary["seed"].tolist() == [0, 1]
    assert sweep.summary["phones"].tolist() == [20, 20]
    assert sweep.summary["model"].tolist() == [tiny.MODEL] * 2
    assert sweep.phones[["seed", "phone"]].value_counts().to_dict() == {(s, p): 1 for s in (0, 1) for p in range(20)}
    assert sweep.rounds[["seed", "round"]].to_numpy().tolist() == [[0, 1], [1, 1]]
    for frame in (sweep.summary, sweep.phones, sweep.rounds, sweep.statistics):
        assert frame.columns[0] == "seed"
    means = sweep.phones.groupby("seed")["macs_ratio"].mean()
    assert means.tolist() == pytest.approx(sweep.summary["macs_ratio"].tolist())
    assert sweep.record["metrics"]["macs_ratio"]["mean"] == pytest.approx(sweep.summary["macs_ratio"].mean())


@pytest.mark.slow
def test_a_sweep_goes_on_and_is_read_again(
    sweep: fedcaptor.Run, texts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedcaptor._simulation.with_progress", lambda *_: pytest.fail("ran again"))
    assert fedcaptor.simulate(None, texts, seeds="0..1", out=sweep.folder, progress=False).seeds == (0, 1)
    assert "".join(capsys.readouterr()) == ""
    again = fedcaptor.Run.open(sweep.folder)
    assert again.record == sweep.record
    (sweep.folder / "report.html").unlink()
    assert again.report().read_text().startswith("<!doctype html>")
    assert repr(again) == f"<fedcaptor.Run in {sweep.folder}, seeds 0, 1>"
    one = fedcaptor.Run.open(sweep.folder / "seed-1")
    assert (one.seeds, one.is_sweep, len(one.phones), len(one.rounds)) == ((1,), False, 20, 1)
    assert one.report() == sweep.folder / "seed-1" / "report.html"
    with pytest.raises(fedcaptor.StateError, match="holds a sweep"):
        fedcaptor.simulate(None, texts, out=sweep.folder)
    with pytest.raises(fedcaptor.ConfigError, match="seeds are empty"):
        fedcaptor.simulate(None, texts, seeds=[], out=sweep.folder)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Config, Path]]:
    """Configurations and folders that would have been run."""
    found: list[tuple[Config, Path]] = []

    def run(config: Config, folder: Path, *_: Any) -> None:
        found.append((config, folder))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text('{"seed": 0}')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedcaptor._simulation.with_progress", run)
    return found


def test_overrides_are_python_values(asked: list[tuple[Config, Path]]) -> None:
    values = {
        "population.phones": 70,
        "privacy.noise": False,
        "personal.ladder": (0.3, 0.5),
        "model.weights": Path("a b.safetensors"),
        "population.law": "partitioner",
        "population.partitioner_arguments": {"alpha": 0.5},
    }
    fedcaptor.simulate("demo", values)
    config = asked[0][0]
    assert (config.population.phones, config.privacy.noise, config.personal.ladder) == (70, False, (0.3, 0.5))
    assert config.model.weights == "a b.safetensors"
    assert config.population.partitioner_arguments == {"alpha": 0.5}
    fedcaptor.simulate(config, {"run.seed": 3})
    assert asked[1][0] == fedcaptor.load_config(config, ["run.seed=3"])
    assert asked[1][0].personal.ladder == (0.3, 0.5)
    with pytest.raises(fedcaptor.ConfigError, match=r"run\.seed is a set"):
        fedcaptor.simulate("demo", {"run.seed": {3}})


def test_each_configuration_has_a_folder_of_its_own(asked: list[tuple[Config, Path]]) -> None:
    calls = [("demo.toml", {}), ("demo", {}), ("demo", {"planner.macs": 0.5}), (None, {})]
    first, same, other, plain = (fedcaptor.simulate(name, values).folder for name, values in calls)
    assert first == same != other
    assert (first.parent.name, first.name.partition("-")[0]) == ("runs", "demo")
    assert plain.name.startswith("simulation-")
    assert [folder for _, folder in asked] == [first, same, other, plain]


def test_a_file_wins_over_a_shipped_scenario(asked: list[tuple[Config, Path]], tmp_path: Path) -> None:
    (tmp_path / "demo.toml").write_text("[run]\nseed = 9\n")
    fedcaptor.simulate("demo.toml")
    assert asked[0][0].run.seed == 9
    with pytest.raises(fedcaptor.ConfigError, match=r"nothing.toml does not exist"):
        fedcaptor.simulate("nothing.toml")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fedcaptor.StateError, match=r"no readable summary\.json"):
        fedcaptor.Run.open(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(fedcaptor.StateError, match=r"summary\.json is damaged"):
        fedcaptor.Run.open(tmp_path)
