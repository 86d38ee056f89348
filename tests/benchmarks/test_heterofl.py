"""Nested widths and the average of what overlaps, by hand; the arm learns, is seeded, and keeps to its budgets."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.heterofl import BYTES, HeteroFL, Population, averaged, nested
from fedcaptor.common.config import load_config
from fedcaptor.common.data.source import load
from fedcaptor.common.plan import Plan
from fedcaptor.common.slicer import slice_state
from fedcaptor.simulations.runner import build_world
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(bars, tmp_path_factory):
    return build_world(load_config(None, tiny.overrides(*bars)), tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("macs", [1.0, 0.5, 0.2])
def test_a_narrower_submodel_is_a_part_of_a_wider_one(world, macs):
    groups = world.base.groups
    plan, wider = nested(groups, macs), nested(groups, 1.0)
    assert wider.counts() == {group.name: group.channels for group in groups.prunable}
    assert groups.macs_ratio(plan.counts()) <= macs
    assert groups.macs_ratio(nested(groups, macs + 0.1).counts()) >= groups.macs_ratio(plan.counts())
    assert all(kept.tolist() == list(range(len(kept))) for kept in plan.kept.values())
    assert plan.classes(groups).tolist() == list(range(tiny.CLASSES))


def test_overlapping_parts_are_averaged_and_others_stay(world):
    groups = world.base.groups
    state = {name: np.zeros_like(array) for name, array in world.base.state.items()}
    plans = [Plan.of(groups, {"0": range(2), "6": [1, 4]}), Plan.of(groups, {"0": range(5), "6": [4]})]
    ones = {name: np.ones_like(array) for name, array in state.items()}
    updates = [
        (plan, {k: (n + 1) * a for k, a in slice_state(ones, groups, plan).items()}) for n, plan in enumerate(plans)
    ]
    found = averaged(state, groups, updates)
    assert found["0.weight"][:, 0, 0, 0].tolist() == [1.5, 1.5, 2, 2, 2, 0, 0, 0]
    assert found["3.weight"][0, :, 0, 0].tolist() == [1.5, 1.5, 2, 2, 2, 0, 0, 0]
    assert found["6.bias"].tolist() == [0, 1, 0, 0, 1.5, 0]  # by the phones that have the class alone
    assert {name: array.dtype for name, array in found.items()} == {name: array.dtype for name, array in state.items()}


def test_phones_have_their_own_images_and_labels(world):
    population, seen = Population.of(world), np.load(world.directory / "population" / "images.npy")
    use = np.load(world.directory / "population" / "use.npy")[0]
    shares = np.load(world.directory / "oracle" / "shares.npy")[0]
    data = load(world.config.data.source)
    label_of = {image.tobytes(): label for image, label in zip(data.x, data.y, strict=True)}
    for phone, (images, labels) in enumerate(population.use):
        np.testing.assert_array_equal(images, seen[use[phone]])
        assert labels.tolist() == [label_of[image.tobytes()] for image in images]
        assert shares[phone, population.tests[phone].labels].all()


@pytest.mark.slow
def test_training_is_seeded_and_learns(world):
    whole, arm = Population.of(world), HeteroFL(phones=20, rounds=4, rate=0.05)
    population = replace(whole, use=whole.use[:12], tests=whole.tests[:12])
    plans = [nested(world.base.groups, ratio) for ratio in [0.3, 0.6] * 6]
    first = arm._of_heterofl(population, plans, world.base.state)
    done = []
    state, again, other = (arm.train(population, plans, seed, done.append) for seed in (0, 0, 1))
    assert done == [1, 2, 3, 4] * 3
    assert all(np.array_equal(state[name], array) for name, array in again.items())
    assert not np.array_equal(state["0.weight"], other["0.weight"])
    last = arm._of_heterofl(population, plans, state)
    assert last["heterofl_accuracy"] > first["heterofl_accuracy"] + 0.03
    assert last["heterofl_limited"] > last["heterofl_accuracy"]
    parameters = np.mean([world.base.groups.parameters(plan.counts()) for plan in plans])
    assert last["heterofl_bytes"] == pytest.approx(2 * 4 * BYTES * parameters)


@pytest.mark.long
def test_a_row_has_both_arms_at_the_same_macs(bars, tmp_path, monkeypatch):
    config = load_config(None, tiny.overrides(*bars))
    monkeypatch.setattr(HeteroFL, "config", lambda arm, seed: config)
    row = HeteroFL(phones=30, rounds=2, keep=tmp_path).measure({"seed": 0}, lambda phase, done, total: None)
    assert 0 < row["heterofl_macs"] <= row["fedcaptor_macs"] <= 1
    assert (
        0
        < row["fedcaptor_bytes"]
        == pytest.approx(
            sum(
                p["bytes_down"] + p["bytes_up"]
                for p in json.loads((tmp_path / "0" / "details.json").read_text())["phases"]
            )
            / 30
        )
    )
