"""The section is what hand-made rows say, good and bad."""

import pytest

from benchmarks.charts import draw
from benchmarks.pages.pruning import render
from benchmarks.record import Record
from benchmarks.results import PAGES, sections
from fedcaptor.common.errors import StateError

SETTINGS = {
    "model": "vgg16",
    "weights": "0123",
    "outputs": 10,
    "macs": 313_000_000,
    "data": {"name": "train.npz", "images": 50_000, "digest": "a"},
    "test": {"name": "test.npz", "images": 10_000, "digest": "b"},
    "tune_per_class": 2000,
    "tune_seconds": 180.0,
    "threads": 2,
}
MACHINE = {"cores": 2, "cpu": "abacus", "python": "3.11.7", "torch": "2.14.1"}
# Accuracy at 59.5 % and 10 % of the MACs; cut networks after recalibration
ACCURACY = {
    "reconstruct": (0.919, 0.80),
    "reconstruct-agnostic": (0.918, 0.74),
    "torch-pruning-taylor": (0.20, 0.20),
    "torch-pruning-group-norm": (0.21, 0.20),
}
AGAIN = {"torch-pruning-taylor": (0.80, 0.85), "torch-pruning-group-norm": (0.70, 0.60)}


def row(strategy, which, draw, accuracy, again, tune="none", calibration=50, classes=5):
    jitter = 0.002 * draw
    return {
        "model": "vgg16",
        "classes": list(range(draw, draw + classes)),
        "strategy": strategy,
        "macs_target": (0.595, 0.1)[which],
        "macs_ratio": 0.1,
        "parameters_ratio": 0.1,
        "tune": tune,
        "calibration_per_class": calibration,
        "seed": 0,
        "draw": draw,
        "accuracy_full": 0.86,
        "accuracy_full_limited": 0.92 + jitter,
        "accuracy_full_limited_worst_class": 0.85,
        "accuracy_full_limited_recalibrated": 0.915,
        "accuracy": accuracy + jitter,
        "accuracy_worst_class": accuracy - 0.1,
        "accuracy_recalibrated": again + jitter,
        "accuracy_recalibrated_worst_class": again - 0.1,
        "seconds": 3.0,
    }


@pytest.fixture
def record():
    rows = [
        row(strategy, which, draw, accuracy[which] + 0.001 * (draw == 1), AGAIN.get(strategy, accuracy)[which])
        for draw in range(3)
        for strategy, accuracy in ACCURACY.items()
        for which in (0, 1)
    ]
    return Record("pruning", dict(SETTINGS), MACHINE, ["the command"], rows)


def line(text, start):
    found = [each for each in text.splitlines() if each.startswith(start)]
    assert len(found) == 1, f"{start}: {found}"
    return found[0]


def test_tables_show_mean_spread_and_loss(record):
    text = render(record).text
    assert "|  | 59.5 % MACs | 10 % MACs |" in text
    assert "| reconstruct | 92.1 ± 0.2 (0.1 ± 0.1) | 80.2 ± 0.2 (12.0 ± 0.1) |" in text
    assert "| Torch-Pruning, Taylor | 20.2 ± 0.2 (72.0 ± 0.1) |" in text
    assert "| Torch-Pruning, Taylor, recalibrated | 80.2 ± 0.2 (12.0 ± 0.0) |" in text
    assert "full model, all its classes 86.0 ± 0.0 % (worst draw 86.0)" in text
    assert "full model, target classes only 92.2 ± 0.2 % (worst draw 92.0)" in text
    assert "lowest class on target classes only, of any draw, 85.0 %" in text


def test_worst_draw_and_lowest_class(record):
    assert "| reconstruct | 91.9 / 81.9 | 80.0 / 70.0 |" in render(record).text


def test_what_is_not_better_than_peers_is_said(record):
    text = render(record).text
    # The peer is taken recalibrated, ours as it is
    assert line(text, "- 59.5 % MACs").endswith("over the best other, Torch-Pruning, Taylor: better.")
    assert "−5.0" in line(text, "- 10 % MACs")
    assert line(text, "- 10 % MACs").endswith("**worse**.")


def test_the_best_other_is_the_one_that_ours_is_least_ahead_of_on_most_draws(record):
    text = render(record).text
    assert "| 5 classes, no training: loss | 0.1 ± 0.1 | 12.0 ± 0.1 | 3 |" in text
    assert "| … ahead of the best other | +11.9 ± 0.1 | −5.0 ± 0.1 | 3 |" in text
    record.rows.append(row("l1", 1, 0, 0.99, 0.99))  # on one draw alone
    text = render(record).text
    assert line(text, "- 10 % MACs").endswith("over the best other, Torch-Pruning, Taylor: **worse**.")
    assert "| L1 | – | 99.0 (−7.0) | 1 |" in text
    record.rows[:] = [r for r in record.rows if r["strategy"] in ("reconstruct", "l1")]
    assert line(render(record).text, "| … ahead of the best other").endswith("| – | −19.0 ? | 1 |")


def test_class_adaptivity_is_paired_over_draws(record):
    below = render(record).text.partition("### What class-adaptivity brings")[2]
    assert "| 5 classes, no training | +0.1 ± 0.0 | +6.0 ± 0.0 |" in below
    # One draw lost, the pair goes; a difference that varies is not told from chance
    record.rows[:] = [r for r in record.rows if r["draw"] != 2 or r["strategy"] != "reconstruct"]
    record.rows[0]["accuracy"] += 0.05
    below = render(record).text.partition("### What class-adaptivity brings")[2]
    assert "| 5 classes, no training | +2.6 ± 3.5 ? | +6.0 ± 0.0 |" in below


def test_the_paper_stands_beside_with_what_it_does_not_state(record):
    below = render(record).text.partition("### Beside the paper")[2]
    assert "report 40.5 % fewer MACs at a loss that is negligible" in below
    assert "is not stated" in below
    assert "| 5 classes, no training | 0.07 ± 0.06 | 59.5 % |" in below
    record.settings["model"] = "resnet20"
    assert "paper" not in render(record).text


def test_calibration_set_sizes_have_their_table(record):
    assert "Calibration set size" not in render(record).text
    record.rows.extend([row("reconstruct", 1, draw, 0.75, 0.75, calibration=5) for draw in range(3)])
    text = render(record).text
    below = text.partition("### Calibration set size")[2]
    assert "|  | 5 | 50 |" in below
    assert "| reconstruct, 10 % MACs | 17.0 ± 0.0 | 12.0 ± 0.1 |" in below
    assert "80.2 ± 0.2 (12.0 ± 0.1)" in text.partition("### Calibration set size")[0]  # the usual size alone


def test_a_row_that_two_files_hold_is_refused(record):
    record.rows.append(dict(record.rows[0]))
    with pytest.raises(StateError, match="two rows in the files"):
        render(record)


def test_mixtures_stand_beside_even_shares_and_in_no_other_table(record):
    whole = render(record).text
    record.rows.extend([row("reconstruct", 1, draw, 0.75, 0.75) | {"mixture": 1.0} for draw in range(2)])
    text, _, below = render(record).text.partition("### Calibration set size")
    assert "|  | 50 | 50, mixture 1 |" in below
    assert "| reconstruct, 10 % MACs | 11.9 ± 0.1 | 17.0 ± 0.0 |" in below
    assert whole.startswith(text)


def test_tuned_rows_have_tables_of_their_own(record):
    record.rows.extend([row("reconstruct", 1, draw, 0.9, 0.7, tune="short") for draw in range(3)])
    section = render(record)
    below = section.text.partition("**Short tuning**")[2]
    assert "| reconstruct | 90.2 ± 0.2 (2.0 ± 0.0) |" in below
    assert [panel.title for panel in section.charts["pruning-vgg16-5"].panels] == [
        "5 of 10 classes: no training",
        "5 of 10 classes: short tuning",
    ]


@pytest.mark.slow
def test_a_chart_for_each_number_of_classes(record, tmp_path):
    record.rows.extend([row("reconstruct", 1, 0, 0.9, 0.7, classes=2)])
    record.rows.remove(next(r for r in record.rows if r["strategy"] == "torch-pruning-taylor"))
    charts = render(record).charts
    assert list(charts) == ["pruning-vgg16-2", "pruning-vgg16-5"]
    (panel,) = charts["pruning-vgg16-5"].panels
    assert panel.categories == ("59.5", "10")
    values = {each.label: each.values for each in panel.lines}
    assert values["reconstruct"] == pytest.approx((-0.067, -11.967))
    assert values["Torch-Pruning, group norm"] == pytest.approx((-22, -32))
    assert values["full model, target classes only"] == pytest.approx((0, 0))
    draw(charts["pruning-vgg16-5"], tmp_path / "chart.svg")
    assert "Torch-Pruning, Taylor" in (tmp_path / "chart.svg").read_text()


def test_all_strategies_can_be_drawn(record, tmp_path):
    from benchmarks.pruning import STRATEGIES

    record.rows[:] = [row(name, 0, 0, 0.9, 0.9) for name in STRATEGIES]
    chart = render(record).charts["pruning-vgg16-5"]
    assert len(chart.panels[0].lines) == len(STRATEGIES) + 2
    draw(chart, tmp_path / "chart.svg")


def test_it_is_a_section_of_the_page(record, tmp_path):
    record.save(tmp_path / "pruning-vgg16.json")
    assert "pruning" in PAGES
    ((_, section),) = sections(tmp_path)
    assert section.title == "Pruning vgg16"


@pytest.fixture
def many(record):
    """An own network with 1,000 outputs; what class-adaptivity brings falls with the number of classes."""
    gains = {5: 0.10, 10: 0.04, 50: 0.0}
    settings = {"model": "benchmarks.lite0:efficientnet_lite0", "outputs": 1000, "outputs_with_images": 202}
    rows = [
        row(name, which, draw, 0.7 + gain * (name == "reconstruct") * (1 + which + draw / 10), 0.1, classes=size)
        for draw in range(3)
        for size, gain in gains.items()
        for name in ("reconstruct", "reconstruct-agnostic")
        for which in (0, 1)
    ]
    return Record("pruning", SETTINGS | settings, MACHINE, ["the command"], rows)


def test_many_classes_of_an_own_network(many):
    section = render(many)
    assert section.title == "Pruning efficientnet_lite0"
    assert "efficientnet_lite0, 1,000 classes, 202 of them with images, from which the target classes" in section.text
    assert "scaled to 160 inside the network" in section.text
    names = ["5", "10", "50", "adaptivity"]
    assert list(section.charts) == [f"pruning-efficientnet-lite0-{name}" for name in names]
    assert section.charts["pruning-efficientnet-lite0-50"].title == "efficientnet_lite0, 50 of 1,000 classes"


def test_class_adaptivity_by_number_of_classes_is_drawn_with_its_spread(many, tmp_path):
    many.rows[:] = [r for r in many.rows if (len(r["classes"]), r["macs_target"]) != (10, 0.1)]
    chart = render(many).charts["pruning-efficientnet-lite0-adaptivity"]
    (panel,) = chart.panels
    assert panel.categories == ("59.5", "10")
    lines = {line.label: line for line in panel.lines}
    assert list(lines) == ["5 classes", "10 classes", "50 classes", "no difference"]
    assert lines["5 classes"].values == pytest.approx((11.0, 21.0))
    assert lines["5 classes"].spread == pytest.approx((1.0, 1.0))
    assert lines["10 classes"].values == pytest.approx((4.4, float("nan")), nan_ok=True)
    assert lines["50 classes"].values == pytest.approx((0, 0))
    draw(chart, tmp_path / "chart.svg")
    assert "50 classes" in (tmp_path / "chart.svg").read_text()


def test_one_number_of_classes_has_no_chart_of_class_adaptivity(record):
    assert list(render(record).charts) == ["pruning-vgg16-5"]
    assert "of them with images" not in render(record).text
