"""The page of several runs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedcaptor.cli.main import app
from fedcaptor.common.config import MARKS, parse
from fedcaptor.common.errors import StateError
from fedcaptor.simulations.report import write_comparison
from tests.simulations.test_report import body, drawings, make_run, make_summary
from tests.simulations.test_sweep import make_sweep


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A run, another one in a folder with an odd name, and a sweep."""
    folders = [tmp_path / "runs" / name for name in ("plain", "a & b:c", "sweep")]
    for folder in folders:
        folder.mkdir(parents=True)
    other = make_summary() | {"macs_ratio": 0.2987, "marks": ["noise off", "my own"]}
    make_run(folders[0], atlas=False)
    make_run(folders[1], other, atlas=False)
    make_sweep(folders[2])
    return folders


def test_the_page_shows_runs_side_by_side(runs: list[Path], tmp_path: Path) -> None:
    page = body(write_comparison(runs, tmp_path / "comparison.html"))
    for text in (
        "<h1>runs/plain, runs/a &amp; b:c, runs/sweep</h1>",
        '<td data-label="runs/plain">38.3 %</td><td data-label="runs/a &amp; b:c">29.9 %</td>'
        '<td data-label="runs/sweep">31.0 % (28.6 % … 33.5 %)</td>',
        'href="runs/a%20%26%20b%3Ac/report.html"', "seeds 0, 3, 7", "seed 7", "my own</li>", "noise off<span>: nothing",
        "fedcaptor simulate drift --set", "90.4 %", "interval of that mean in brackets",
    ):  # fmt: skip
        assert text in page, text
    plot = drawings(page)["trade"]
    assert [trace["name"] for trace in plot["traces"]] == ["runs/plain", "runs/a &amp; b:c", "runs/sweep"]
    assert plot["layout"]["xaxis"]["title"]["text"] == "effective MACs (full model: 100%)"


def test_a_folder_without_a_run_is_named(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"summary\.json is missing"):
        write_comparison([*runs, tmp_path], tmp_path / "comparison.html")
    assert not (tmp_path / "comparison.html").exists()


@pytest.mark.slow
def test_the_command_compares_several_runs_and_explains_their_marks(runs: list[Path], tmp_path: Path) -> None:
    for folder in runs[:2]:
        summary = json.loads((folder / "summary.json").read_text())
        summary["privacy"] |= {"epsilon_server": 3.0, "sums": 7}
        (folder / "summary.json").write_text(json.dumps(summary))
    page = tmp_path / "runs" / "comparison.html"
    result = CliRunner().invoke(app, ["report", *map(str, runs[:2])], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert f"comparison: {page}" in result.stdout
    assert "plain, a &amp; b:c" in body(page)
    shown = " ".join(result.stdout.split())
    for text in ("90.4 % (75.1 %)", "1: 83.1 % / 91.2 % / 92.3 %", "sums not encrypted: the server sees each"):
        assert text in shown, text
    page.unlink()
    assert CliRunner().invoke(app, ["report", str(runs[0])]).exit_code == 0
    assert not page.exists()
    other = tmp_path / "elsewhere.html"
    assert CliRunner().invoke(app, ["report", *map(str, runs[:2]), "--out", str(other)]).exit_code == 0
    assert 'href="runs/plain/report.html"' in body(other)


@pytest.mark.parametrize("privacy", [{"sums": "plain"}, {"sums": "local"}, {"noise": False}, {}])
def test_every_mark_is_explained(privacy: dict[str, object]) -> None:
    config = parse({"privacy": privacy, "testing": {"small_cohorts": True}})
    assert set(config.marks(simulated=True)) <= set(MARKS)
