"""Several seeds of one scenario: statistics by hand, what is run again and what is kept."""

import csv
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fedcaptor.cli.main import app
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import StateError
from fedcaptor.simulations import rounds
from fedcaptor.simulations.records import Metric
from fedcaptor.simulations.report.sweep_page import interval, write_sweep_report
from fedcaptor.simulations.sweep import WITHIN_ONE, aggregate, figures, metric, sweep_of
from fedcaptor.simulations.sweep_folder import is_sweep, rewrite, run_sweep
from tests.simulations.test_report import body, drawings, make_summary


def make_summaries(seeds=(0, 3, 7)):
    """Summaries as runs leave them, which differ in a few figures."""
    found = {}
    for place, seed in enumerate(seeds):
        summary = make_summary()
        summary |= {"seed": seed, "macs_ratio": 0.30 + 0.01 * place}
        summary["accuracy"]["personalised"]["mean"] = 0.9 + 0.02 * place
        found[seed] = summary
    return found


def make_sweep(directory):
    """A folder with `sweep.json` alone."""
    (directory / "sweep.json").write_text(json.dumps(sweep_of(make_summaries()).plain()))
    return directory


def test_mean_spread_and_interval_by_hand():
    found = metric([0.90, 0.92, 0.94], within_one=True)
    assert found.mean == pytest.approx(0.92)
    assert found.std == pytest.approx(0.02)
    half = 4.302652729696142 * 0.02 / math.sqrt(3)  # t of 2 degrees of freedom at 97.5 %, from a table
    odds = math.exp(half / (0.92 * 0.08))
    assert found.low == pytest.approx(0.92 / (0.92 + 0.08 * odds))
    assert found.high == pytest.approx(0.92 / (0.92 + 0.08 / odds))
    assert found.values == (0.90, 0.92, 0.94)
    above = metric([0.90, 0.92, 0.94])
    assert (above.low, above.high) == pytest.approx((0.92 * math.exp(-half / 0.92), 0.92 * math.exp(half / 0.92)))


@given(st.lists(st.sampled_from([0.0, 1e-9, 0.03, 0.5, 0.999, 1.0]), min_size=2, max_size=6))
def test_no_interval_leaves_its_range(values):
    share = metric(values, within_one=True)
    assert 0 <= share.low <= share.mean <= share.high <= 1
    ratio = metric([2 * value for value in values])
    assert 0 <= ratio.low <= ratio.mean <= ratio.high < math.inf


def test_an_interval_near_the_middle_is_the_t_interval():
    found = metric([0.501, 0.500, 0.499], within_one=True)
    assert found.high - found.mean == pytest.approx(4.302652729696142 * 0.001 / math.sqrt(3), rel=1e-3)


def test_figures_within_one_are_known_by_name():
    summary = make_summary()
    beyond = {"effective_macs_ratio", "download_bytes_ratio", "storage_ratio"}
    shares = {name for name in dict(figures(summary)) if WITHIN_ONE.fullmatch(name)}
    assert {"accuracy.personalised.p5", "out_of_set.auroc", "macs_ratio", "cluster_only.macs_ratio"} <= shares
    assert not shares & (beyond | {f"cluster_only.{name}" for name in beyond} | {"privacy.epsilon", "clusters"})


def test_unknown_values_are_kept_in_place_and_not_counted():
    found = metric([1.0, None, 3.0])
    assert (found.mean, found.std, found.values) == (2.0, pytest.approx(math.sqrt(2)), (1.0, None, 3.0))
    assert found.high == pytest.approx(2 * math.exp(12.706204736432095 / 2))  # t of 1 degree of freedom
    assert (metric([None, 5.0]).mean, metric([None, 5.0]).std, metric([None, 5.0]).low) == (5.0, None, None)
    assert metric([None]).mean is None


@given(st.floats(0, 1e6), st.integers(2, 20))
def test_equal_values_are_certain(value, count):
    found = metric([value] * count)
    assert (found.mean, found.std, found.low, found.high) == (value, 0, value, value)


def test_figures_are_the_numbers_of_a_summary():
    summary = {"seed": 3, "model": "x", "on": True, "a": {"b": 1, "c": None, "d": {"e": 0.5}}, "f": math.nan, "g": [1]}
    assert dict(figures(summary)) == {"a.b": 1.0, "a.c": None, "a.d.e": 0.5, "f": None}


def test_a_figure_that_a_run_lacks_is_unknown_there():
    found = aggregate({0: {"a": 1, "faults": {"nan": 2}}, 1: {"a": 2}, 2: {"a": 3, "b": None}})
    assert found["a"].mean == 2
    assert found["faults.nan"].values == (2.0, None, None)
    assert "b" not in found


def configs(seeds, *overrides):
    return {seed: load_config(None, [*overrides, f"run.seed={seed}"]) for seed in seeds}


class Runs:
    """Stands in for the simulation: leaves what a finished run leaves, and counts."""

    def __init__(self, of, fail=()):
        self.of, self.fail, self.done = of, set(fail), []

    def __call__(self, seed, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(self.of[seed].model_dump_json())
        if seed in self.fail:
            raise KeyboardInterrupt
        self.done.append(seed)
        summary = make_summaries(tuple(self.of))[seed]
        (folder / "summary.json").write_text(json.dumps(summary))
        row = dict.fromkeys(rounds.COLUMNS, 1) | {"round": 1, "bytes_up": 10 * seed, "epsilon": None}
        rounds.write_rows(folder / "rounds.csv", [row, row | {"round": 2}])
        (folder / "report.html").write_text("…")
        return summary


def test_a_sweep_runs_each_seed_and_sums_up(tmp_path):
    wanted = configs((0, 3, 7))
    sweep = run_sweep(tmp_path, wanted, Runs(wanted))
    assert sweep == json.loads((tmp_path / "sweep.json").read_text(), parse_constant=pytest.fail)  # no NaN in it
    assert sweep["seeds"] == [0, 3, 7]
    assert sweep["metrics"]["macs_ratio"]["values"] == [0.30, 0.31, 0.32]
    assert sweep["metrics"]["accuracy.personalised.mean"]["mean"] == pytest.approx(0.92)
    assert sweep["marks"] == ["sums not encrypted"]
    assert is_sweep(tmp_path)
    with (tmp_path / "rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["seed", *rounds.COLUMNS]
    assert [(r["seed"], r["round"], r["bytes_up"], r["epsilon"]) for r in rows] == [
        ("0", "1", "0", ""), ("0", "2", "0", ""), ("3", "1", "30", ""), ("3", "2", "30", ""),
        ("7", "1", "70", ""), ("7", "2", "70", ""),
    ]  # fmt: skip


def test_a_stopped_sweep_goes_on_and_keeps_what_is_finished(tmp_path):
    wanted = configs((0, 1, 2))
    stopped = Runs(wanted, fail=[1])
    with pytest.raises(KeyboardInterrupt):
        run_sweep(tmp_path, wanted, stopped)
    assert stopped.done == [0]
    assert not is_sweep(tmp_path)
    again = Runs(wanted)
    run_sweep(tmp_path, wanted, again)
    assert again.done == [1, 2]
    none = Runs(wanted)
    assert run_sweep(tmp_path, wanted, none)["seeds"] == [0, 1, 2]
    assert none.done == []


def test_more_seeds_join_the_finished_ones(tmp_path):
    run_sweep(tmp_path, configs((0, 1)), Runs(configs((0, 1))))
    more = Runs(configs((0, 1, 2)))
    assert run_sweep(tmp_path, configs((0, 1, 2)), more)["seeds"] == [0, 1, 2]
    assert more.done == [2]


@pytest.mark.parametrize("lost", ["summary.json", "rounds.csv", "report.html"])
def test_a_seed_without_all_its_files_runs_again(tmp_path, lost):
    wanted = configs((0, 1))
    run_sweep(tmp_path, wanted, Runs(wanted))
    (tmp_path / "seed-1" / lost).unlink()
    again = Runs(wanted)
    run_sweep(tmp_path, wanted, again)
    assert again.done == [1]


def test_a_seed_of_another_configuration_is_refused(tmp_path):
    run_sweep(tmp_path, configs((0, 1)), Runs(configs((0, 1))))
    before = (tmp_path / "sweep.json").read_bytes()
    other = configs((0, 1), "planner.macs=0.5")
    with pytest.raises(StateError, match=r"seed-0 holds a run of another configuration: choose another --out"):
        run_sweep(tmp_path, other, Runs(other))
    assert (tmp_path / "sweep.json").read_bytes() == before


def test_a_folder_of_a_single_run_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(StateError, match="holds a single run, no sweep"):
        run_sweep(tmp_path, configs((0,)), Runs(configs((0,))))


def test_a_sweep_is_written_again_from_its_runs(tmp_path):
    wanted = configs((0, 3))
    run_sweep(tmp_path, wanted, Runs(wanted))
    summary = json.loads((tmp_path / "seed-3" / "summary.json").read_text()) | {"macs_ratio": 0.5}
    (tmp_path / "seed-3" / "summary.json").write_text(json.dumps(summary))
    assert rewrite(tmp_path)["metrics"]["macs_ratio"]["mean"] == pytest.approx(0.4)
    (tmp_path / "seed-3" / "summary.json").unlink()
    with pytest.raises(StateError, match=r"seed-3.summary\.json is missing"):
        rewrite(tmp_path)


def test_the_page_shows_means_with_intervals_and_links(tmp_path):
    page = body(write_sweep_report(make_sweep(tmp_path)))
    for text in (
        "small-cnn on embedded, 3 seeds", "seeds 0, 3, 7", "95 % t-interval", "92.0 % (85.4 % … 95.8 %)",
        "31.0 % (28.6 % … 33.5 %)", "81.3 % (81.3 % … 81.3 %)", "sums not encrypted<span>: the server sees",
        'href="seed-7/report.html"', "accuracy.personalised.mean", "94.0 %", 'href="rounds.csv"', "fedcaptor 0.1.0",
        f"{tmp_path.name}: small-cnn", "finished 2026-03-04 05:06 UTC", "90.4 % (90.4 % … 90.4 %)",
    ):  # fmt: skip
        assert text in page, text
    drawing = drawings(page)["accuracies"]
    dots = drawing["traces"][0]
    assert len(dots["x"]) == 3 * 6  # seeds times figures
    bar = drawing["traces"][1]["error_x"]
    assert bar["arrayminus"][4] > bar["array"][4] > 0  # further from the end of the range
    hover = [text.replace("\u00a0", " ") for text in dots["hovertext"]]
    assert hover[-6:-3] == [
        "seed 0: 90.0 %",
        "seed 3: 92.0 %",
        "seed 7: 94.0 %",
    ]


def test_one_seed_has_no_interval(tmp_path):
    sweep = sweep_of(make_summaries((4,))).plain()
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    page = body(write_sweep_report(tmp_path))
    assert "small-cnn on embedded, 1 seed<" in page
    assert "…" not in page
    assert "says nothing of how sure" in page


@pytest.mark.parametrize("change", [lambda s: s["metrics"]["clusters"]["values"].pop(), lambda s: s.update(seeds=[])])
def test_a_sweep_that_contradicts_itself_is_damage(tmp_path, change):
    sweep = sweep_of(make_summaries()).plain()
    change(sweep)
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    with pytest.raises(StateError, match=r"sweep\.json is damaged"):
        write_sweep_report(tmp_path)


def test_the_command_runs_each_seed_in_its_own_folder(tmp_path, monkeypatch):
    ran = {}

    def run(config, folder, *_):
        ran[folder.name] = config
        return Runs({config.run.seed: config})(config.run.seed, folder)

    monkeypatch.setattr("fedcaptor._simulation.with_progress", run)
    command = ["simulate", "--out", str(tmp_path), "--set", "run.seed=9", "--set", "planner.macs=0.5", "--json"]
    result = CliRunner().invoke(app, [*command, "--seeds", "1,4"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads((tmp_path / "sweep.json").read_text())
    origin = json.loads(result.stdout)["provenance"]
    told = f"fedcaptor simulate --set run.seed=9 --set planner.macs=0.5 --seeds 1,4 --out {tmp_path}"
    assert (origin["command"], origin["version"]) == (told, "0.1.0")
    assert {name: (c.run.seed, c.planner.macs) for name, c in ran.items()} == {"seed-1": (1, 0.5), "seed-4": (4, 0.5)}
    ran.clear()
    assert CliRunner().invoke(app, [*command, "--seeds", "1,4"]).exit_code == 0
    assert ran == {}
    assert CliRunner().invoke(app, [*command, "--seeds", "1,4", "--fresh"]).exit_code == 0
    assert list(ran) == ["seed-1", "seed-4"]
    shown = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert shown.exit_code == 0
    assert "personalised submodel" in shown.stdout
    assert json.loads((tmp_path / "sweep.json").read_text())["provenance"] == origin
    refused = CliRunner().invoke(app, command)
    assert "holds a sweep: choose another --out, or give --seeds" in str(refused.exception)


def test_words_of_a_metric():
    assert interval(Metric(mean=0.918, low=0.89, high=0.946), "n") == "0.918 (0.89 … 0.946)"
    assert interval(Metric(mean=0.5), "p").replace("\u00a0", " ") == "50.0 %"
    assert interval(Metric(), "n") == "–"
