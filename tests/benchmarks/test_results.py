"""The page is what the rows say, and the committed page is that of the committed rows."""

import math
import re
from pathlib import Path

import pytest

from benchmarks.charts import Chart, Line, Panel, colours_of, draw, drawn_digest
from benchmarks.federation import Federation
from benchmarks.pages.federation import render
from benchmarks.pages.rows import where
from benchmarks.record import Record
from benchmarks.results import page, sections, write_results
from benchmarks.tables import Spread, table
from fedcaptor.common.errors import StateError

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"cores": 2, "cpu": "abacus", "python": "3.11.7", "torch": "2.14.1"}


def row(world, arm, seed, accuracy, macs, epsilon=8.0):
    key = {"world": world, "arm": arm, "images": 30, "phones": 1000, "epsilon": epsilon, "seed": seed}
    own = {"accuracy": accuracy, "accuracy_p5": 0.8, "full": 0.9, "effective_macs": macs, "kept_full": 0.25}
    return {
        **key,
        **own,
        "adapted": 0.5,
        "download_bytes": 236_700,
        "clusters": 2,
        "looks": 0,
        "spent_epsilon": epsilon,
    }


@pytest.fixture
def record():
    rows = []
    for seed in range(3):
        jitter = 0.001 * seed
        rows += [
            row("looks", "shipped", seed, 0.92 + jitter, 0.4),
            row("looks", "alone", seed, 0.90 + jitter, 0.5 + jitter, None),
            row("looks", "look", seed, 0.95 + 2 * jitter, 0.4 - jitter),
            row("clean", "shipped", seed, 0.96, 0.4),
        ]
    return Record("federation", Federation().shared(), MACHINE, ["the command"], rows)


def test_a_table_shows_means_spreads_and_differences(record):
    text = render(record).text
    assert "| `shipped` | 92.1 ± 0.1 | 80.0 ± 0.0 | 90.0 ± 0.0 | 40.0 ± 0.0 | 25.0 ± 0.0 | 237 ± 0 | – | – |" in text
    assert "| **−2.0 ± 0.0** | **+10.1 ± 0.2** |" in text  # of a phone alone, which has no ε
    assert "| **+3.1 ± 0.2** | −0.1 ± 0.2 |" in text
    assert text.index("### clean, 30 photos a phone") < text.index("### looks, 30 photos a phone")
    assert "1,000 phones, ε = 8 where the fleet is asked. Seeds 0, 1, 2." in text


def test_one_seed_tells_nothing(record):
    record.rows[:] = where(record.rows, seed=0)
    assert "±" not in render(record).text.partition("###")[2]
    assert "| −2.0 | +10.0 |" in render(record).text


def test_arms_that_were_not_measured_yet_are_left_out(record):
    record.rows[:] = where(record.rows, arm="alone")
    section = render(record)
    assert "`shipped`:" not in section.text
    assert [len(panel.lines) for panel in section.charts["federation-small-cnn"].panels] == [1, 1]


@pytest.mark.slow
def test_write_results_gives_page_and_figures(record, tmp_path):
    record.save(tmp_path / "rows" / "federation.json")
    written = write_results(tmp_path / "rows", tmp_path / "docs").read_text()
    assert "## What federation brings: small-cnn\n\n```\nthe command\n```\nMade on 2 cores of abacus" in written
    assert "![What federation brings](figures/federation-small-cnn.svg)" in written
    assert "- [What federation brings: small-cnn](#what-federation-brings-small-cnn)\n" in written
    chart = render(record).charts["federation-small-cnn"]
    assert drawn_digest(tmp_path / "docs" / "figures" / "federation-small-cnn.svg") == chart.digest


def test_rows_of_two_machines_make_one_section(record, tmp_path):
    there = Record(record.benchmark, record.settings, MACHINE | {"cpu": "slide rule"}, ["another command"])
    there.rows[:] = where(record.rows, seed=2)
    record.rows[:] = where(record.rows, seed=0) + where(record.rows, seed=1)
    record.save(tmp_path / "here.json")
    there.save(tmp_path / "there.json")
    ((records, section),) = sections(tmp_path)
    assert "Seeds 0, 1, 2." in section.text
    first, second = (
        page([(records, section)]).split("Made on 2 cores of slide rule")[0].split("Made on 2 cores of abacus")
    )
    assert first.endswith("```\nthe command\n```\n")
    assert second.endswith("```\nanother command\n```\n")


def test_rows_of_an_unknown_benchmark_are_refused(record, tmp_path):
    Record("other", {}, MACHINE).save(tmp_path / "other.json")
    with pytest.raises(
        StateError,
        match="'other', known are federation, looks, many_classes, corrections, heterofl, private_vs_open, preference",
    ):
        sections(tmp_path)


def test_the_committed_page_is_that_of_the_committed_rows():
    found = sections(ROOT / "benchmarks" / "results")
    assert found
    assert page(found) == (ROOT / "docs" / "results.md").read_text(), "docs/results.md is old: run `make results`"
    for _, section in found:
        for name, chart in section.charts.items():
            drawn = drawn_digest(ROOT / "docs" / "figures" / f"{name}.svg")
            assert drawn == chart.digest, f"docs/figures/{name}.svg is old: run `make results`"


def test_spread_by_hand():
    three = Spread.of([1.0, 2.0, 3.0])
    assert (three.mean, three.deviation, three.count) == (2.0, 1.0, 3)
    assert three.text() == "2.0 ± 1.0"
    assert Spread.of([-0.02]).text(100, sign=True) == "−2.0"
    assert math.isnan(Spread.of([1.0]).deviation)


def test_what_is_told_from_zero():
    # Student's t with two degrees of freedom: 4.303 standard errors of 1/√3 are 2.48
    assert Spread(2.5, 1.0, 3).told_from_zero
    assert Spread(-2.5, 1.0, 3).told_from_zero
    assert not Spread(2.45, 1.0, 3).told_from_zero
    assert not Spread.of([5.0]).told_from_zero
    assert Spread(9.0, 1.0, 3).half_width == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)


def test_table_by_hand():
    assert table(["", "x"], [["a", "1"]]) == "|  | x |\n| :-- | --: |\n| a | 1 |"


def test_a_label_has_one_colour_in_all_panels_and_its_place_in_the_legend(tmp_path):
    ours, theirs, level = (Line(name, (1.0,), (0.1,), name == "level") for name in ("ours", "theirs", "level"))
    first, second = (Panel("panel", "", "", ("12",), lines) for lines in ((level, ours), (theirs, ours, level)))
    chart = Chart("title", (first, second))
    assert list(colours_of(chart)) == ["ours", "theirs", "level"]
    assert colours_of(chart)["ours"] == colours_of(Chart("title", (first,)))["ours"]
    assert len(set(colours_of(chart).values())) == 3
    draw(chart, tmp_path / "a.svg")
    assert ">theirs<" in (tmp_path / "a.svg").read_text()


def test_lines_lead_over_what_was_not_measured(tmp_path):
    def drawn(*values):
        panel = Panel("panel", "", "", ("50", "30", "10"), (Line("ours", values, (math.nan,) * 3),))
        draw(Chart("title", (panel,)), tmp_path / "a.svg")
        return re.findall(r'<path d="(M[^"]*)"[^>]*stroke: #0072b2', (tmp_path / "a.svg").read_text())

    assert max(path.count("L") for path in drawn(1.0, math.nan, 3.0)) == 1
    assert max(path.count("L") for path in drawn(1.0, 2.0, 3.0)) == 2


def test_a_chart_is_drawn_alike_each_time(tmp_path):
    line = Line("ours", (1.0, 2.0), (0.1, math.nan))
    chart = Chart("title", (Panel("panel", "below", "beside", ("12", "30"), (line,)),))
    draw(chart, tmp_path / "a.svg")
    draw(chart, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert all(text in (tmp_path / "a.svg").read_text() for text in ("ours", "panel", "below", "beside", ">12<"))
    assert Chart("other", chart.panels).digest != chart.digest
