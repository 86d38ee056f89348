"""The arms differ just as stated, and their configuration does what its words say."""

import json

import numpy as np
import pytest

from benchmarks.federation import ARMS, Federation
from fedcaptor.common.config import Planner
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.server.planning import Reference, plan_cluster
from fedcaptor.simulations.runner import SHIPPED
from tests import tiny

SETTINGS = Federation(phones=24)


def flat(arm, images=30, seed=0):
    sections = SETTINGS.config(arm, images, seed).model_dump(exclude={"tiers", "looks"})
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def changed(before, after):
    """{key: (value of one arm, of the other)}"""
    left, right = flat(before), flat(after)
    return {key: (left[key], right[key]) for key in left if left[key] != right[key]}


def test_each_arm_adds_one_part():
    assert changed("alone", "reference") == {"personal.reference": (0, 30)}
    assert changed("reference", "clusters") == {
        "clusters.k": (1, 0),
        "usage.prior": (0, 4.0),
        "delivery.plans": (False, True),
    }
    assert changed("clusters", "scores") == {"scores.enabled": (False, True), "visualise.enabled": (False, True)}


def test_one_for_all_is_alone_without_the_personal_step():
    assert changed("alone", "one-for-all") == {"personal.enabled": (True, False), "planner.by_usage": (True, False)}


def test_all_parts_are_the_shipped_configuration():
    assert ARMS["scores"] == ()
    assert all(
        config.privacy.noise and config.privacy.epsilon == 8 for config in (SETTINGS.config(a, 30, 0) for a in ARMS)
    )


@pytest.mark.parametrize(("images", "check"), [(100, 67), (30, 20), (12, 8), (3, 8)])
def test_check_images_follow_in_proportion(images, check):
    population = SETTINGS.config("scores", images, 0).population
    assert (population.use_images, population.check_images) == (images, check)


def test_settings_tell_populations_apart_and_do_not_depend_on_the_row():
    assert SETTINGS.shared() == Federation(phones=24, seeds="1", images="12").shared()
    assert SETTINGS.shared()["configuration"] != Federation(phones=25).shared()["configuration"]


@pytest.mark.slow
def test_a_plan_that_ignores_usage_serves_all_classes_alike(one_thread):
    base = BaseModel.load(SHIPPED, "small-cnn", (1, 28, 28))
    rng = np.random.default_rng(0)
    reference = Reference(rng.integers(0, 256, (40, 28, 28, 1), dtype=np.uint8), np.arange(40) % 10)
    first, last = np.eye(10)[0], np.eye(10)[9]
    plans = [
        plan_cluster(base, usage, reference, Planner(images=40, tolerance=0, by_usage=False), None, 0)[0].plan
        for usage in (first, last)
    ]
    assert plans[0].classes(base.groups).tolist() == list(range(10))
    assert plans[0].digest == plans[1].digest
    of_usage = plan_cluster(base, first, reference, Planner(images=40, tolerance=0), None, 0)[0].plan
    assert of_usage.classes(base.groups).tolist() == [0]


@pytest.mark.long
def test_a_row_of_the_arm_without_personal_step(bars, tmp_path, monkeypatch):
    monkeypatch.setitem(ARMS, "one-for-all", (*tiny.overrides(*bars), *ARMS["one-for-all"]))
    settings = Federation(phones=24, keep=tmp_path)
    row = settings.measure({"arm": "one-for-all", "images": 12, "seed": 0}, lambda phase, done, total: None)
    assert row["macs"] == row["effective_macs"] <= 0.6
    assert row["accuracy"] > row["unlimited"] > 0.5
    assert row["personal_seconds"] > 0
    assert row["sums_seconds"] > 0
    assert row["spent_epsilon"] <= 8
    fetched = json.loads((tmp_path / "one-for-all-12-0" / "details.json").read_text())["phones"]["download_bytes"]
    assert max(fetched) < 1000  # neither plans nor reference images
