"""Both makers give one network, and a row holds what scripts and the page read."""

import json

import numpy as np
import pytest

from benchmarks import submodels
from benchmarks.record import read_record
from benchmarks.results import PAGES
from benchmarks.slicing import Slicing
from fedcaptor.common.errors import ConfigError, FedcaptorError, PlanError

SHAPE = (3, 32, 32)


@pytest.fixture(scope="module")
def base():
    return submodels.random_base("resnet20", SHAPE, 0)


def test_plans_keep_the_same_share_within_the_budget(base, one_thread):
    first, second = submodels.random_plans(base.groups, 0.5, 2, 0)
    assert base.groups.macs_ratio(first.counts()) <= 0.5
    assert first.counts() == second.counts()
    assert first.digest != second.digest
    assert {g.channels for g in base.groups.prunable} == {16, 32, 64}
    shares = {(g.channels, first.counts()[g.name]) for g in base.groups.prunable}
    assert len(shares) == 3  # one count a width
    assert all(count % 8 == 0 for _, count in shares)
    with pytest.raises(PlanError, match="at least: raise it"):
        submodels.random_plans(base.groups, 0.01, 1, 0)


def test_both_makers_give_the_same_network(base, one_thread):
    for plan in submodels.random_plans(base.groups, 0.5, 2, 1):
        submodels.require_equal(base, plan)
        pruned, tracing = submodels.torch_pruning(base, plan, iter(range(9)).__next__)
        assert tracing == 1
        values = sum(t.numel() for t in pruned.state_dict().values() if t.is_floating_point())
        assert values == base.groups.parameters(plan.counts())


def test_different_networks_are_not_compared(base, one_thread, monkeypatch):
    first, second = submodels.random_plans(base.groups, 0.5, 2, 1)
    made = submodels.torch_pruning(base, second)
    monkeypatch.setattr(submodels, "torch_pruning", lambda base, plan: made)
    with pytest.raises(FedcaptorError, match="nothing to compare"):
        submodels.require_equal(base, first)


def test_seconds_are_of_one_submodel(base, one_thread):
    plans = submodels.random_plans(base.groups, 0.5, 2, 1)
    ticks = iter([0.0, 3.0])
    assert submodels.factory_seconds(base, plans, ticks.__next__) == 1.5
    ticks = iter([0.0, 1.0, 5.0, 6.0, 12.0, 20.0])  # graphs take 4 and 6
    assert submodels.torch_pruning_seconds(base, plans, ticks.__next__) == (10.0, 5.0)
    ticks = iter([1.0, 3.0])
    assert submodels.copying_seconds(base, plans[0], ticks.__next__) == 2.0


def test_the_peak_of_one_process_does_not_fall(base):
    before, after = submodels.peak("ours", "resnet20", SHAPE, base.groups.to_json(), 0.5, 2, 0)
    assert 0 < before <= after < 1 << 40


@pytest.mark.long
def test_the_command_writes_rows_that_the_page_shows(tmp_path):
    file = tmp_path / "slicing.json"
    Slicing(models="small-cnn", plans=1, repetitions=1, images=4).run(file)
    record = read_record(file)
    (row,) = record.rows
    assert row["model"] == "small-cnn"
    assert row["ratio"] == pytest.approx(row["ours_per_second"] / row["torch_pruning_per_second"], rel=1e-4)
    assert row["torch_pruning_untraced_per_second"] > row["torch_pruning_per_second"]
    assert row["peak_rss_bytes"] > row["added_rss_bytes"] >= 0
    assert np.isclose(row["macs_ratio"], 0.5, atol=0.1)
    assert json.loads(file.read_text())["settings"]["plans"] == 1
    section = PAGES["slicing"](record)
    assert "| small-cnn (0.7 M values" in section.text
    assert len({line.count("|") for line in section.text.splitlines() if line.startswith("|")}) == 1


def test_a_budget_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="must lie in"):
        Slicing(macs=1.5)
