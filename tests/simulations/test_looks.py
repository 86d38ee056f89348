"""Phones with another camera than the server's images: they are adapted to it, and the figures tell the looks apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedcaptor.client import own_look
from fedcaptor.client.folder import ADAPTATION_FILE, LOOK_FILE
from fedcaptor.common.config import Config, Look, parse
from fedcaptor.common.data.source import load
from fedcaptor.common.errors import ConfigError
from fedcaptor.simulations.looks import corrupted, drawn, in_look
from fedcaptor.simulations.runner import build_world, simulate

BLURRED = {"name": "blurred", "share": 0.5, "corruptions": ["blur=1.2"]}
VALUES: dict[str, Any] = {
    "population": {"phones": 12, "use_images": 20, "check_images": 10, "test_images": 20},
    "privacy": {"min_cohort": 3, "noise": False, "sums": "plain"},
    "testing": {"small_cohorts": True},
    "visualise": {"enabled": False},
    "personal": {"ladder": [0.3], "reference": 6, "rows": 256},
    "scores": {"enabled": False},
    "clusters": {"k": 1, "iterations": 1},
    "planner": {"images": 60},
    "domain": {"enabled": True, "moments": True},
    "looks": [{"name": "sharp", "share": 0.5}, BLURRED],
}
IMAGES = load("embedded").x[:40]
Run = tuple[Path, Config, dict[str, Any]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    directory, config = tmp_path_factory.mktemp("run"), parse(VALUES)
    return directory, config, simulate(config, directory)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_blurred_photos_are_answered_better_than_by_the_shipped_model(finished: Run) -> None:
    directory, _, summary = finished
    sharp, blurred = summary["looks"]
    assert (sharp["name"], blurred["corruptions"]) == ("sharp", ["blur=1.2"])
    assert sharp["phones"] + blurred["phones"] == 12
    assert blurred["shipped"] < sharp["shipped"]
    assert blurred["full"] > blurred["shipped"] + 0.1
    assert abs(sharp["full"] - sharp["shipped"]) < 0.03
    assert summary["accuracy"]["full"]["mean"] > summary["accuracy"]["shipped"]["mean"] + 0.05
    details = json.loads((directory / "details.json").read_text())
    assert {"look-0", "moments-0", "adapt"} <= {phase["phase"] for phase in details["phases"]}
    assert len(details["clusters"]) == 2 * summary["clusters"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_each_phone_finds_its_own_look(finished: Run) -> None:
    directory, config, _ = finished
    world = build_world(config, directory)
    from fedcaptor.simulations.phones import phone_engine

    engine, found = phone_engine(directory, config, world.base), {}
    for number in range(12):
        folder = directory / "phones" / f"{number:06d}"
        assert {LOOK_FILE, ADAPTATION_FILE} <= {path.name for path in folder.iterdir()}
        adaptation = own_look.adaptation_of(folder, engine)
        assert adaptation is not None
        found.setdefault(drawn(config, number), set()).add(own_look.chosen(folder, adaptation))
    assert sorted(len(chosen) for chosen in found.values()) == [1, 1]
    assert found[0] != found[1]


def test_corruptions_do_what_they_say() -> None:
    rng = np.random.default_rng(0)
    assert np.array_equal(corrupted(IMAGES, [], rng), IMAGES)
    assert np.abs(corrupted(IMAGES, ["light=0.5"], rng) - IMAGES / 2).max() <= 0.5
    noisy = corrupted(np.full((1, 50, 50, 1), 128, np.uint8), ["noise=0.1"], rng)
    assert noisy.std() == pytest.approx(25.5, rel=0.1)
    assert corrupted(IMAGES, ["blur=2"], rng).std() < IMAGES.std()
    flat = corrupted(IMAGES, ["contrast=0.05"], rng)
    assert np.abs(flat - IMAGES.mean((1, 2), keepdims=True)).max() < 14
    warm = corrupted(np.full((1, 4, 4, 3), 100, np.uint8), ["warmth=0.5"], rng)[0, 0, 0]
    assert warm.tolist() == [100, 88, 50]
    for images in (IMAGES, np.repeat(IMAGES, 3, 3)):
        coded = corrupted(images, ["jpeg=30"], rng)
        assert coded.shape == images.shape
        assert 0 < np.abs(coded.astype(int) - images).mean() < 20


def test_photos_and_looks_are_drawn_alike_each_time() -> None:
    config = parse(VALUES)
    looks = config.looks
    np.testing.assert_array_equal(in_look(IMAGES, looks, 1, 0), in_look(IMAGES, looks, 1, 0))
    shares = np.bincount([drawn(config, number) for number in range(2000)]) / 2000
    np.testing.assert_allclose(shares, 0.5, atol=0.05)
    assert drawn(parse({}), 7) == 0
    assert Look(name="a", share=1.0).corruptions == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"looks": [{"name": "a", "share": 0.4}]}, "shares of looks sum to 0.4"),
        ({"looks": [{"name": "a", "share": 1, "corruptions": ["fog=1"]}]}, "'fog' is unknown, known are blur, noise"),
        ({"looks": [{"name": "a", "share": 1, "corruptions": ["blur=99"]}]}, "blur is '99', must lie in 0.1..5"),
        ({"looks": [{"name": "a", "share": 1, "corruptions": ["blur"]}]}, "blur is '', must lie in"),
        ({"domain": {"enabled": True}, "delivery": {"mode": "submodel"}}, "needs delivery.mode plan"),
        ({"domain": {"enabled": True}, "privacy": {"sums": "local"}}, "needs delivery.mode plan"),
        ({"domain": {"enabled": True}, "privacy": {"look_share": 0.6}}, "leave nothing for usage"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(values)
