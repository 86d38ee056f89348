"""What adapting a network to a camera brings: a row, and the section that rows make."""

from __future__ import annotations

import pytest

from benchmarks.looks import Looks
from benchmarks.record import Record
from benchmarks.results import PAGES
from fedcaptor.common.errors import ConfigError
from fedcaptor.simulations.runner import SHIPPED

MACHINE = {"cores": 2, "cpu": "abacus", "python": "3.11.7", "torch": "2.14.1"}
ARMS = ("shipped", "own_norms", "own_look", "pooled", "look-1000-8", "moments-1000-8")


def settings(**more: object) -> Looks:
    small = {"sample": 5, "judged": 1, "test_images": 100, "phones": "1000", **more}
    return Looks(model="small-cnn", weights=SHIPPED, data="embedded", **small)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_blurred_camera_is_adapted_to() -> None:
    benchmark = settings(cameras="blur=1.2")
    (key,) = benchmark.row_keys()
    arms = benchmark.measure(key, lambda *_: None)["arms"]
    assert set(arms) == set(ARMS)
    for arm in ("own_look", "look-1000-8", "pooled"):
        assert arms[arm]["all"] > arms["shipped"]["all"] + 0.05
    assert all(0 <= accuracy <= 1 for each in arms.values() for accuracy in each.values())


def test_a_row_for_each_seed_camera_and_number_of_photos() -> None:
    keys = settings(cameras="sharp,blur=1+noise=0.1", images="12,30", draws=2).row_keys()
    assert len(keys) == 8
    assert {key["camera"] for key in keys} == {"sharp", "blur=1+noise=0.1"}
    with pytest.raises(ConfigError, match=r"camera 'fog=1': corruption 'fog' is unknown"):
        settings(cameras="fog=1").measure({"camera": "fog=1", "images": 30, "seed": 0}, lambda *_: None)


def test_the_section_has_an_arm_in_each_column() -> None:
    arms = {arm: {"all": 0.5 + n / 100, "own": 0.9} for n, arm in enumerate(ARMS)}
    row = {"model": "vgg16", "data": "x", "camera": "blur=1", "images": 30, "seed": 0, "arms": arms}
    text = PAGES["looks"](
        Record("looks", {"sample": 40, "judged": 4, "test_images": 400, "classes": "3"}, MACHINE, [], [row])
    ).text
    expected = " | ".join(f"{accuracy}.0 / 90.0" for accuracy in (50, 51, 52, 54, 55, 53))
    assert f"| vgg16 | blur=1 | 30 | {expected} |" in text
