"""The programs on the pages of docs/examples run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {page.stem: page.read_text() for page in sorted((ROOT / "docs" / "examples").glob("*.md"))}
PROGRAMS = {
    page: dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```", text, re.M | re.S)) for page, text in PAGES.items()
}

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path):
    """Write all programs into an empty folder; the function runs one of them there and returns what it printed."""
    for programs in PROGRAMS.values():
        for name, text in programs.items():
            (tmp_path / name).write_text(text)

    def run(name):
        done = subprocess.run([sys.executable, name], cwd=tmp_path, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_every_page_has_its_programs():
    assert {page: sorted(programs) for page, programs in PROGRAMS.items()} == {
        "one-network": ["budgets.py", "one_network.py"],
        "own-parts": [
            "my_clustering.py",
            "my_data.py",
            "my_law.py",
            "my_model.py",
            "my_score.py",
            "my_statistic.py",
            "own_parts.py",
        ],
        "own-strategy": ["own_strategy.py"],
        "population": ["population.py"],
    }


def test_one_network(run, tmp_path):
    shown = run("one_network.py")
    macs = float(re.search(r"(\S+) of the MACs", shown)[1])
    assert 0 < macs <= 0.3
    assert set(re.findall(r"\d+", shown.splitlines()[-1])) <= {"3", "5"}
    assert (tmp_path / "small.safetensors").stat().st_size > 0
    rows = [[float(word) for word in line.split()] for line in run("budgets.py").splitlines()[-3:]]
    assert [row[0] for row in rows] == [0.6, 0.4, 0.2]
    assert all(0 < kept <= asked for asked, kept, _ in rows)


def test_own_strategy(run):
    rows = [line.split(maxsplit=2) for line in run("own_strategy.py").splitlines()[-3:]]
    assert [row[0] for row in rows] == ["l2_norm", "l1", "reconstruct"]
    assert all(0 < float(macs) <= 0.4 for _, macs, _ in rows)
    assert {classes for *_, classes in rows} == {"[3 5]"}


@pytest.mark.long
def test_population(run, tmp_path):
    shown = run("population.py")
    assert "accuracy.personalised.mean" in shown
    page = Path(shown.splitlines()[-1])
    assert (tmp_path / page).exists()
    assert (tmp_path / "runs" / "population" / "seed-1" / "summary.json").exists()


@pytest.mark.long
def test_own_parts(run):
    *_, header, row, statistic = run("own_parts.py").splitlines()
    figures = dict(zip(header.split(), map(float, row.split()[1:]), strict=True))
    assert figures["phones"] == 40
    assert 0 < figures["macs_ratio"] < 1
    assert 0.1 < float(statistic.removeprefix("brightness ")) < 0.6
