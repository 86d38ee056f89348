"""Local answers beside masked sums: what is measured, that it goes on, and the page."""

import numpy as np
import pytest

from benchmarks import local_privacy
from benchmarks.local_privacy import LocalPrivacy
from benchmarks.pages.rows import where
from benchmarks.record import read_record
from benchmarks.results import PAGES
from fedcaptor.common.errors import ConfigError


def test_figures_by_hand():
    usage = np.array([[1.0, 0.0], [0.8, 0.2], [0.0, 1.0], [0.0, 1.0]])
    found = local_privacy.figures(usage, np.array([[1.0, 0.0], [0.1, 0.9]]))
    assert found["distance"] == pytest.approx((0 + 0.2 + 0.1 + 0.1) / 4)
    assert found["error"] == pytest.approx(0.1)  # the mean of each pair is (0.9, 0.1) and (0, 1)
    assert found["clusters"] == 2


def test_the_command_goes_on_and_the_page_shows_its_rows(tmp_path):
    file = tmp_path / "rows.json"
    options = {"phones": "120", "epsilons": "1,12", "classes": 10, "groups": 4, "min_cohort": 20}
    LocalPrivacy(seeds="0", **options).run(file)
    first = read_record(file).rows
    LocalPrivacy(seeds="0,1", **options).run(file)
    record = read_record(file)
    assert [row for row in record.rows if row["seed"] == 0] == first
    assert len(record.rows) == 4
    loose, tight = (where(record.rows, epsilon=epsilon, seed=0)[0] for epsilon in (12, 1))
    assert loose["unprotected_distance"] == tight["unprotected_distance"]
    assert loose["local_distance"] < tight["local_distance"] - 0.1
    text = PAGES["local_privacy"](record).text
    assert text.count("120 phones, ε = ") == 4
    assert "Seeds 0, 1." in text


def test_no_epsilon_is_refused():
    with pytest.raises(ConfigError, match="epsilons is '0,4', must be above 0"):
        LocalPrivacy(epsilons="0,4")
