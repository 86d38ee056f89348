"""The page says what the rows say: differences within seeds, and whether the goals are met."""

import pytest

from benchmarks.pages.private_vs_open import render
from benchmarks.private_vs_open import PrivateVsOpen
from benchmarks.record import Record


def row(phones, epsilon, seed, accuracy, personal=0.96):
    full = {"accuracy_full": 0.91, "accuracy_full_limited": 0.96, "spent_epsilon": epsilon, "judged": 4}
    return {
        **{"phones": phones, "epsilon": epsilon, "seed": seed, "clusters": 4, "served": 0.95, **full},
        **{"accuracy": accuracy, "accuracy_limited": accuracy + 0.03, "macs_ratio": 0.29, "centroid_error": 0.01},
        **{"accuracy_personal": personal, "macs_personal": 0.24, "macs_effective": 0.3, "seconds": 9.0},
    }


@pytest.fixture
def record():
    rows = [row(1000, None, seed, 0.88 + 0.02 * seed) for seed in (0, 1)]
    rows += [row(1000, 8.0, seed, 0.877 + 0.022 * seed) for seed in (0, 1)]
    rows += [row(10000, None, 0, 0.89), row(10000, 2.0, 0, 0.88, 0.958)]
    settings = PrivateVsOpen(phones="10000", judged=4, personal=2).shared()
    return Record("private_vs_open", settings, {}, ["the command"], rows)


def test_a_line_has_differences_within_seeds(record):
    text = render(record).text
    assert "| no noise | 4 | 0.0100 ± 0.0000 | 95.0 ± 0.0 | 89.0 ± 1.4 | – |" in text
    assert "| ε = 8 | 4 | 0.0100 ± 0.0000 | 95.0 ± 0.0 | 88.8 ± 1.6 | −0.20 ± 0.14 |" in text


def test_goals_that_are_missed_are_named(record):
    verdicts = [line for line in render(record).text.splitlines() if line.startswith("- **ε")]
    assert "−0.20 ± 0.14 points against no noise (worst seed −0.30), at +0.00 ± 0.00 points of MACs" in verdicts[0]
    assert "ε = 2, 10,000 phones, cluster's submodel**: −1.00" in verdicts[2]
    words = [line.rpartition(": ")[2] for line in verdicts]
    unsure = "on average within, these seeds do not rule out more than 0.5 points."
    # Student's t with one degree of freedom: 12.7 · 0.14 / √2 is 1.3 points
    assert words == [unsure, "within 0.5 points.", "**not within** 0.5 points.", unsure]


def test_without_the_personal_step(record):
    record.rows[:] = [
        {**one, "accuracy_personal": None, "macs_personal": None, "macs_effective": None} for one in record.rows
    ]
    section = render(record)
    assert section.text.count("- **ε") == 2
    assert "| – | – | – | – |" in section.text
    assert [len(panel.lines) for panel in section.charts["private-vs-open"].panels] == [3]
