"""A server that measures how long a phone takes to answer learns nothing of its owner's classes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from fedcaptor.client.folder import open_ledger
from fedcaptor.common.errors import PrivacyError, StateError, WireError
from tests.attacks.server.devices import CountingEngine, Owner, delivery, learner, masked, phone, settings_of, start
from tests.client.fake_engine import CLASSES


@pytest.fixture(autouse=True)
def nothing_looked_at() -> None:
    CountingEngine.looked = 0


def test_a_bare_request_for_a_vector_computes_nothing(tmp_path: Path) -> None:
    """The steps before it are missing, so it is declined, and before anything is computed."""
    owner = Owner(1)
    one = phone(tmp_path, owner)
    with pytest.raises(PrivacyError, match="before the steps that come first"):
        one.masked(masked(3), start())
    assert one.background.asked == []  # type: ignore[union-attr]
    assert (owner.days, CountingEngine.looked) == ([], 0)


def test_a_phone_that_is_switched_off_computes_nothing(tmp_path: Path) -> None:
    owner = Owner(1)
    one = phone(tmp_path, owner)
    one.masked(masked(0), start())
    with open_ledger(tmp_path, one.config.privacy) as ledger:
        ledger.off()
    asked: list[str] = one.background.asked  # type: ignore[union-attr]
    asked.clear()
    for step in (0, 3):
        with pytest.raises(PrivacyError, match="switched off"):
            one.masked(masked(step), start())
    assert (asked, owner.days, CountingEngine.looked) == ([], [], 0)


def test_no_reply_looks_at_an_image(tmp_path: Path) -> None:
    """Neither to a delivery nor with a vector: the phone does that in a process of its own."""
    owner = Owner(1)
    one = phone(tmp_path, owner)
    one.masked(masked(0), start())
    one.deliver(*delivery(*[1] * 50))
    assert one.background.asked == ["usage", "delivery"]  # type: ignore[union-attr]
    with pytest.raises(StateError, match="has not looked at its images yet"):
        learner(tmp_path, owner).usage(1)
    assert (owner.days, CountingEngine.looked) == ([], 0)
    learner(tmp_path, owner, replying=False).work("scores")
    seen = CountingEngine.looked
    assert seen > 0
    replying = learner(tmp_path, owner)
    assert replying.usage(1).argmax() == 1
    assert replying.filter_scores(1) is not None
    assert CountingEngine.looked == seen


@pytest.mark.parametrize(
    ("settings", "labels", "words"),
    [
        ("delivery.max_class_images=30", [1] * 31, r"31 of one class, at most 30 .* raise delivery.max_class_images"),
        ("delivery.max_images=60", [0, 1, 2] * 21, "63 reference images, at most 60"),
        ("delivery.max_bytes=300", [0, 1, 2] * 21, r"tensors, at most 300 .* raise delivery.max_bytes"),
    ],
)
def test_a_delivery_above_the_phones_own_bounds_is_refused(
    tmp_path: Path, settings: str, labels: list[int], words: str
) -> None:
    one = phone(tmp_path, Owner(1), settings_of(settings))
    with pytest.raises(WireError, match=words):
        one.deliver(*delivery(*labels, preference=np.ones((12, CLASSES), np.float32)))
    assert not (tmp_path / "delivery.safetensors").exists()


def test_thousands_of_images_of_one_class_are_refused_by_default(tmp_path: Path) -> None:
    with pytest.raises(WireError, match="12000 of one class"):
        phone(tmp_path, Owner(1)).deliver(*delivery(*[1] * 12_000))


@pytest.mark.slow
def test_two_owners_cannot_be_told_apart_by_two_hundred_requests(tmp_path: Path) -> None:
    """By deliveries of one owner's class alone, vectors, and first steps; a rank test at one in ten thousand."""
    owners = [phone(tmp_path / str(label), Owner(label)) for label in (1, 2)]
    for number, one in enumerate(owners):
        learner(one.folder, Owner(number + 1), replying=False).work("usage")
    of_one = delivery(*[1] * 100)
    attacks: dict[str, Callable[[Any, int], Any]] = {
        "delivery": lambda one, n: one.deliver(*of_one),
        "vector": lambda one, n: one.masked(masked(3, n), start(n)),
        "usage": lambda one, n: one.learner().usage(n),
    }
    rng = np.random.default_rng(0)
    for name, attack in attacks.items():
        seconds: list[list[float]] = [[], []]
        for n in range(200):
            for which in rng.permutation(2):
                begin = time.perf_counter()
                with suppress(PrivacyError):
                    attack(owners[which], n)
                seconds[which].append(time.perf_counter() - begin)
        assert mannwhitneyu(*seconds).pvalue > 1e-4, name
