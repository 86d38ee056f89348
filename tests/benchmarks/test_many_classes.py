"""What topics bring: a small fleet whose network is a table of answers, and the section that rows make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.many_classes import Answers, ManyClasses, measured
from benchmarks.record import Record
from benchmarks.results import PAGES
from fedcaptor.common.calibration import Calibration
from fedcaptor.common.groups import ChannelGroups, Group

MACHINE = {"cores": 2, "cpu": "abacus", "python": "3.11.7", "torch": "2.14.1"}
ARMS = ("alone", "kmeans", "topics", "topics_open", "true")
FIGURES = ("accuracy", "covered_10", "covered_20", "covered_40", "limited")


def answers(classes: int) -> Answers:
    """Two images of each class now and one later, of which a network is fairly sure."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(classes), 3)
    logits = 6 * np.eye(classes)[labels] + rng.normal(0, 1.5, (len(labels), classes))
    layers = (Group("g", 4, (), ()), Group("classes", classes, (), (), output=True))
    groups = ChannelGroups("a table", (1, 8, 8), layers, (), {})
    now = np.arange(len(labels)) < 2 * classes
    return Answers(groups, rng.normal(size=(classes, 8)), Calibration.none(classes), logits, labels, now)


@pytest.mark.slow
def test_a_fleet_knows_which_classes_come_next() -> None:
    settings = ManyClasses(
        model="x", weights=Path("x"), data="x", interests=4, interest_classes=15, topics=4, iterations=4, judged=30
    )
    key = {"images": 15, "phones": 200, "epsilon": 8.0, "seed": 0}
    arms = measured(settings, key, answers(60), lambda *_: None)["arms"]
    assert set(arms) == set(ARMS)
    assert arms["topics_open"]["covered_20"] > arms["alone"]["covered_20"] + 0.05
    assert arms["topics"]["covered_20"] > arms["alone"]["covered_20"] - 0.05  # so few phones: noise outweighs them
    assert arms["true"]["covered_20"] > arms["topics_open"]["covered_20"]


def test_the_section_compares_what_phones_know() -> None:
    arms = {arm: dict.fromkeys(FIGURES, 0.5 + n / 100) for n, arm in enumerate(ARMS)}
    settings = {
        "model": "benchmarks.lite0:net",
        "outputs": 202,
        "interests": 12,
        "interest_classes": 34,
        "judged": 250,
        "later": 60,
        "topics": 16,
        "iterations": 6,
    }
    rows = [{"images": 30, "phones": 10000, "epsilon": 8.0, "seed": seed, "arms": arms} for seed in (0, 1)]
    text = PAGES["many_classes"](Record("many_classes", settings, MACHINE, [], rows)).text
    assert "| 30 | 10,000 | 8 | the owner's mixture of the fleet's topics | 52.0 ± 0.0 | 52.0 ± 0.0 |" in text
