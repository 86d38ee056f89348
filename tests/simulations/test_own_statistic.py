"""A statistic of one's own, from phones to the server's figure, without a change to FedCAPTOR's code."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fedcaptor
from fedcaptor.common.arrays import Floats, Tensors
from fedcaptor.common.config import Config, load_config
from fedcaptor.common.errors import ConfigError, StateError
from fedcaptor.common.groups import ChannelGroups
from fedcaptor.common.statistics import PhoneView, Precision, Statistic, register, unregister
from fedcaptor.server.budget import SumBudget, budget_shares, steps
from fedcaptor.server.journal import Journal
from fedcaptor.server.start import run_digest
from fedcaptor.simulations.runner import simulate
from tests import tiny
from tests.server.test_budget import GROUPS

SMALL = ("population.phones=24", "privacy.noise=false", "scores.enabled=false")


class Brightness(Statistic):
    """Mean brightness of the phones' images, in [0, 1], beside a 1 that counts the phones."""

    name = kind = "brightness"

    def share(self, config: Config) -> float:
        return 0.1

    def sums(self, config: Config, round: int) -> int:
        return 1

    def length(self, groups: ChannelGroups, blocks: int) -> int:
        return 2

    def longest(self, groups: ChannelGroups) -> int:
        return 2

    def vector(self, phone: PhoneView, tensors: Tensors) -> Floats:
        return np.array([phone.images().mean() / 255, 1.0]) / math.sqrt(2)

    def decode(self, total: Floats, groups: ChannelGroups) -> float:
        return float(total[0] / total[1])

    def precision(self, config: Config, groups: ChannelGroups, clusters: int) -> Precision:
        return Precision("mean brightness of the fleet's images", math.sqrt(2), 0.02)


@pytest.fixture(autouse=True)
def brightness() -> Iterator[Brightness]:
    statistic = Brightness()
    register(statistic)
    yield statistic
    unregister(statistic.name)


@pytest.mark.slow
def test_its_sum_comes_through_the_same_masks_as_all_others(bars: tuple[Path, Path], tmp_path: Path) -> None:
    simulate(load_config(None, tiny.overrides(*bars, *SMALL)), tmp_path)
    population = tmp_path / "population"
    images, use = np.load(population / "images.npy"), np.load(population / "use.npy")[0]
    truth = np.mean([images[row].mean() / 255 for row in use])
    found = json.loads((tmp_path / "statistics.json").read_text())
    assert found["brightness"] == pytest.approx(truth, abs=1e-4)
    details = json.loads((tmp_path / "details.json").read_text())
    assert "1-brightness-0" in [one["name"] for one in details["sums"]]


def test_it_takes_its_share_of_the_budget_and_no_more_is_spent() -> None:
    config = load_config(None, ["population.phones=200"])
    shares = budget_shares(config)
    assert shares["brightness"] == 0.1
    assert sum(shares.values()) == pytest.approx(1)
    budget = SumBudget(config, GROUPS, 200)
    specs = [budget.spec(step, 8) for step in steps(config)]
    assert specs[-1].name == "1-brightness-0"
    assert 0.97 * config.privacy.epsilon < (budget.epsilon(specs) or 0) <= config.privacy.epsilon


def test_shares_that_leave_nothing_are_refused(brightness: Brightness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Brightness, "share", lambda self, config: 0.6)
    with pytest.raises(ConfigError, match=r"brightness 0\.6 of the privacy budget, nothing is left for usage"):
        budget_shares(Config())


def test_a_run_goes_on_only_with_the_statistics_that_it_began_with(
    brightness: Brightness, bars: tuple[Path, Path], tmp_path: Path
) -> None:
    base, config = tiny.base_model(bars[1]), Config()
    with_it = run_digest(config, base, 24)
    unregister(brightness.name)
    try:
        without = run_digest(config, base, 24)
    finally:
        register(brightness)
    assert with_it != without
    Journal(f"sqlite:///{tmp_path / 'state.db'}", without).close()
    with pytest.raises(StateError, match="use the configuration, weights and statistics that it began with"):
        Journal(f"sqlite:///{tmp_path / 'state.db'}", with_it)


def test_other_processes_do_not_have_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its processes lack the statistic brightness: use the engine local"):
        fedcaptor.simulate(overrides=SMALL, out=tmp_path / "run", engine="ray", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_built_in_ones_stay() -> None:
    with pytest.raises(ConfigError, match="'usage' is not one that was added"):
        unregister("usage")
