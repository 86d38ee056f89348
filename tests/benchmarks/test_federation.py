"""The arms differ just as stated, a fleet's answers are its phones' own, and rows are what their words say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.federation import ARMS, Federation, Measurement
from benchmarks.fleet_photos import Photos
from fedcaptor.common.adaptation import Adaptation
from fedcaptor.common.config import Planner
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.look import look_of
from fedcaptor.common.messages import SumFields, SumRequest
from fedcaptor.common.torch_engine.base import BaseModel
from fedcaptor.common.torch_engine.recalibrate import moments_on
from fedcaptor.server.budget import SumBudget, steps
from fedcaptor.server.planning import Reference, plan_cluster
from fedcaptor.simulations.phones import simulated_phone
from fedcaptor.simulations.runner import SHIPPED
from tests import tiny

SETTINGS = Federation()
ROW = {"world": "clean", "arm": "shipped", "images": 30, "phones": 100, "epsilon": 8.0, "seed": 0}


def flat(arm: str) -> dict[str, object]:
    sections = SETTINGS.config({**ROW, "arm": arm}).model_dump(exclude={"tiers", "looks"})
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


def changed(before: str, after: str) -> dict[str, tuple[object, object]]:
    left, right = flat(before), flat(after)
    return {key: (left[key], right[key]) for key in left if left[key] != right[key]}


def test_each_arm_adds_one_part() -> None:
    assert changed("own-images", "alone") == {"personal.reference": (0, 30)}
    assert changed("alone", "alone-look") == {"domain.alone": (False, True)}
    assert changed("alone", "usage") == {
        "clusters.k": (1, 0),
        "usage.prior": (0, 4.0),
        "delivery.plans": (False, True),
    }
    assert changed("usage", "look") == {"domain.enabled": (False, True)}
    assert changed("look", "moments") == {"domain.moments": (False, True)}
    assert changed("look", "scores") == {"scores.enabled": (False, True), "visualise.enabled": (False, True)}
    assert changed("own-images", "one-model") == {
        "personal.enabled": (True, False),
        "planner.by_usage": (True, False),
    }
    assert ARMS["shipped"].overrides == ()


def test_check_images_follow_in_proportion() -> None:
    populations = [SETTINGS.config({**ROW, "images": images}).population for images in (100, 30, 12, 3)]
    assert [population.check_images for population in populations] == [67, 20, 8, 8]


def test_an_arm_without_sums_has_one_row_for_all_budgets() -> None:
    keys = Federation(arms="alone,look", epsilon="8,2", images="12,30", phones="100,1000", seeds="0,1").row_keys()
    assert len(keys) == 2 * 2 * 2 * 2 * (1 + 2)
    assert {key["epsilon"] for key in keys if key["arm"] == "alone"} == {None}
    assert SETTINGS.config({**ROW, "epsilon": None}).privacy.noise is False
    own = Federation(worlds="owners", images="12,30", arms="alone").row_keys()
    assert [key["images"] for key in own] == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"worlds": "moon"},
            "world 'moon' is unknown, known are clean, no-images, new, new-no-images, looks, cold, many, owners",
        ),
        ({"arms": "none"}, "arm 'none' is unknown, known are shipped,"),
        ({"worlds": "no-images", "arms": "usage,look"}, "leave out the arm look"),
        ({"epsilon": "0"}, "epsilon is '0', must be"),
        ({"images": "0"}, "images is 0, but phones of the world clean need some"),
        ({"worlds": "owners", "data": "own.npz"}, "the world owners has images and weights of its own"),
        ({"phones": "10"}, "sample is 20, must be at most the fewest phones"),
    ],
)
def test_what_cannot_be_measured_is_said(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Federation(**options)  # type: ignore[arg-type]


def test_settings_do_not_depend_on_the_row_nor_on_paths() -> None:
    assert SETTINGS.shared() == replace(SETTINGS, seeds="1", images="12", worlds="cold").shared()
    here = replace(SETTINGS, data="/somewhere/photos.npz", weights=Path("/somewhere/own.safetensors"))
    assert "somewhere" not in str(here.shared())
    assert here.shared()["configuration"] == SETTINGS.shared()["configuration"]


@pytest.fixture(scope="module")
def measurement(bars: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    given = [each for each in tiny.overrides(*bars) if not each.startswith(("population.phones", "personal.ref"))]
    settings = Federation(worlds="looks", phones="24", sample=3, test_images=16, overrides=given)
    return Measurement(settings, tmp_path_factory.mktemp("federation"), lambda *_: None)


@pytest.fixture(scope="module")
def photos(measurement: Measurement) -> Photos:
    return measurement._photos("looks", 24, 24, 0)


@pytest.mark.usefixtures("one_thread")
def test_looks_and_moments_are_the_phones_own(photos: Photos) -> None:
    world = photos.world
    config = world.config.model_copy(update={"domain": world.config.domain.model_copy(update={"enabled": True})})
    source = look_of(world.reference.x)
    looks = np.stack([source, source + 1]).astype(np.float32)
    tensors = {"look_source": source.astype(np.float32), "looks": looks}
    expected = {"looks": looks, "expected": np.zeros((2, 16), np.float32)}
    step = next(step for step in steps(config) if step.kind == "look")
    spec = SumBudget(config, world.base.groups, world.phones).spec(step, 2)
    fleet = photos.answered(scored=False)
    for kind, sent in (("look", tensors), ("moments", expected)):
        found = fleet.vectors(kind, range(world.phones), sent)
        request = SumRequest(run="a" * 64, round=1, request="b" * 64, kind=kind, sum=SumFields.of(spec))
        phones = (simulated_phone(world.directory, config, world.base, number) for number in range(world.phones))
        np.testing.assert_allclose(found, [phone.learner().vector(request, sent) for phone in phones], atol=1e-6)
        assert len(np.unique(found, axis=0)) == world.phones


@pytest.mark.usefixtures("one_thread")
def test_an_adapted_fleet_answers_as_its_own_look_asks(photos: Photos) -> None:
    shipped = photos.answered(scored=False)
    measured = [moments_on(photos.world.base, photos.of_camera(camera)) for camera in range(4)]
    looks = [look_of(photos.of_camera(camera)) for camera in range(4)]
    still = Adaptation(np.array(looks, np.float32), np.array(looks[0], np.float32), np.zeros((4, 16), np.float32))
    np.testing.assert_allclose(photos.answered(False, still).counts, shipped.counts)
    moved = replace(still, moments=np.array(measured, np.float32))
    assert np.abs(photos.answered(False, moved).counts - shipped.counts).max() > 0.1


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("world", "images"), [("looks", 24), ("cold", 0)])
def test_rows_of_all_arms(measurement: Measurement, world: str, images: int) -> None:
    rows = {}
    for arm, settings in ARMS.items():
        epsilon = 8.0 if settings.sums else None
        key = {"world": world, "arm": arm, "images": images, "phones": 24, "epsilon": epsilon, "seed": 0}
        rows[arm] = measurement.measure(key)
    for arm, row in rows.items():
        assert all(0 <= row[name] <= 1 for name in ("accuracy", "accuracy_p5", "full")), arm
        assert row["spent_epsilon"] is None if not ARMS[arm].sums else row["spent_epsilon"] <= 8 * (1 + 1e-9)
        assert (row["looks"] > 0) == (arm in ("look", "moments", "scores", "oracle"))
        assert row["effective_macs"] > 0
    assert rows["oracle"]["looks"] == 4
    assert rows["own-images"]["download_bytes"] < rows["alone"]["download_bytes"] < rows["look"]["download_bytes"]
    if world == "cold":  # without a photo a phone alone has the full model
        assert rows["alone"]["kept_full"] == 1
        assert rows["alone"]["accuracy"] == rows["alone"]["full"]
        assert rows["usage"]["effective_macs"] < 1
        assert math.isclose(rows["usage"]["full"], rows["alone"]["full"])


@pytest.mark.slow
def test_a_plan_that_ignores_usage_serves_all_classes_alike(one_thread: None) -> None:
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
