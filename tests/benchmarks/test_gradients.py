"""Closing filters changes what zeroed weights change; rows hold what the page reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmarks import gradients
from benchmarks.closing import Closing
from benchmarks.gradients import Gradients
from benchmarks.record import read_record
from benchmarks.results import PAGES
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.torch_engine.gradients import SCORES
from fedcaptor.common.torch_engine.trace import trace
from tests import tiny
from tests.common import own_networks

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (3, 8, 8)


@pytest.mark.parametrize("name", ["plain", "concatenating", "dense", "gated", "flat_norm"])
def test_closing_is_zeroing_the_weights_that_read_the_filter(name):
    torch.manual_seed(0)
    network = getattr(own_networks, name)(4, SHAPE).eval().requires_grad_(False)
    groups = trace(network, name, SHAPE)
    x, labels = torch.randn(3, *SHAPE), np.array([0, 1, 3])
    closing, modules = Closing.on(network, x, labels), dict(network.named_modules())
    before = network(x)
    for group in groups.prunable:
        found = closing.changes(group, [1])
        kept = {c.layer: modules[c.layer].weight.clone() for c in group.consumers}
        for c in group.consumers:
            modules[c.layer].weight[:, c.offset + c.taps : c.offset + 2 * c.taps] = 0
        zeroed = functional.cross_entropy(network(x), torch.tensor(labels), reduction="none") - closing.losses
        for layer, weight in kept.items():
            modules[layer].weight.copy_(weight)
        assert zeroed.abs().max() > 0
        np.testing.assert_allclose(found[0], zeroed, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(network(x), before, rtol=0, atol=0)


def test_layers_before_the_readers_do_not_run(bars):
    base = tiny.base_model(bars[1])
    first, second = base.groups.prunable
    closing = Closing.on(base.module, torch.randn(2, 1, 12, 12), np.array([0, 1]))
    with torch.no_grad():
        base.module[0].weight[:] = torch.nan
    assert np.isfinite(closing.changes(second, [0, 3])).all()
    assert np.isfinite(closing.changes(first, [0])).all()
    assert not torch.isfinite(base.module(closing.x)).any()


def test_rank_correlation_by_hand():
    assert gradients.rank_correlation(np.array([1.0, 2, 9]), np.array([0.1, 0.2, 0.3])) == pytest.approx(1)
    assert gradients.rank_correlation(np.array([3.0, 2, 1]), np.array([0.1, 0.2, 0.3])) == pytest.approx(-1)
    assert gradients.rank_correlation(np.zeros(3), np.array([0.1, 0.2, 0.3])) == 0


def measure(bars, file, draws=2, **options):
    data, weights = bars
    given = {"classes": "3", "draws": draws, "filters": 8, "images": 10, "held": 10, "threads": 1, **options}
    Gradients(model=tiny.MODEL, weights=weights, data=str(data), **given).run(file)
    return read_record(file)


def test_the_command_goes_on_and_the_page_shows_its_rows(bars, tmp_path, monkeypatch):
    file, scored = tmp_path / "rows.json", []
    monkeypatch.setitem(gradients.SCORES, "taylor", lambda *a, score=SCORES["taylor"]: scored.append(1) or score(*a))
    measure(bars, file, draws=1)
    record = measure(bars, file)
    assert len(scored) == 2  # once a draw
    assert len(record.rows) == 2 * 2 * 5
    assert {row["layer"] for row in record.rows} == {"0", "3"}
    assert all(-1 <= row[name] <= 1 for row in record.rows for name in ("correlation", "correlation_size"))
    assert np.mean([row["correlation_size"] for row in record.rows if row["score"] == "taylor"]) > 0.5
    section = PAGES["gradients"](record)
    assert "### 3 of 6 classes" in section.text
    assert section.text.count("best predicted by") == 2
    (chart,) = section.charts.values()
    assert [len(panel.lines) for panel in chart.panels] == [5, 5]
    assert chart.panels[0].categories == ("1", "2")


def test_too_many_classes_are_refused(bars, tmp_path):
    with pytest.raises(ConfigError, match=r"classes is 7, must lie in 1\.\.6"):
        measure(bars, tmp_path / "a.json", classes="7")
