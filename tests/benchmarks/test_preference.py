"""What costs no privacy: correlations by hand, rows from a tiny world, the page."""

import numpy as np
import pytest

from benchmarks.preference import VARIANTS, Preference, PreferenceMeasurement, correlation, low_rank
from benchmarks.private_vs_open import Population
from benchmarks.record import Record
from benchmarks.results import PAGES
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.preference import layer_slices
from tests import tiny


@pytest.fixture(scope="module")
def measurement(bars, tmp_path_factory):
    overrides = (*tiny.overrides(*bars, "privacy.min_cohort=5")[:-1], "visualise.steps=2")
    folder = tmp_path_factory.mktemp("measurement")
    return PreferenceMeasurement(Population(30, 20, overrides), folder, lambda name, done, total: None)


def test_little_noise_leaves_the_order_of_filters(measurement):
    found = {e: measurement.measure({"phones": 30, "epsilon": e, "seed": 0})["correlations"] for e in (1, 10**6)}
    each = VARIANTS.index("each filter")
    assert found[10**6][each] > 0.9
    assert found[1][each] < found[10**6][each] - 0.3
    assert found[1][VARIANTS.index("pictures alone")] == found[10**6][VARIANTS.index("pictures alone")]


def test_correlation_by_hand(bars):
    groups = tiny.base_model(bars[1]).groups
    filters = sum(group.channels for group in groups.prunable)
    exact = np.random.default_rng(0).random((filters, groups.classes))
    assert correlation(exact**3, exact, groups) == pytest.approx(1)
    assert correlation(-exact, exact, groups) == pytest.approx(-1)
    assert correlation(np.ones_like(exact), exact, groups) == 0
    one = exact.copy()
    one[:, 1:] = 0  # classes that nobody has do not count
    assert correlation(exact, one, groups) == pytest.approx(1)
    assert len(layer_slices(groups)) > 1


def test_low_rank_keeps_what_has_it():
    rng = np.random.default_rng(1)
    block = rng.random((6, 2)) @ rng.random((2, 5))
    np.testing.assert_allclose(low_rank(block), block)
    assert np.linalg.matrix_rank(low_rank(rng.random((6, 5)))) == 2


def test_no_epsilon_below_one():
    with pytest.raises(ConfigError, match="epsilons is '0,2', must be at least 1"):
        Preference(epsilons="0,2")


def test_the_page_has_a_line_for_each_way():
    rows = [
        {"phones": 100, "epsilon": 8, "seed": s, "correlations": [0.1 * s + 0.01 * i for i in range(len(VARIANTS))]}
        for s in (0, 2)
    ]
    record = Record("preference", Preference().shared(), {}, [], rows)
    text = PAGES["preference"](record).text
    assert "| each filter, low rank | 0.11 ± 0.14 |" in text
    assert "seeds 0, 2." in text
