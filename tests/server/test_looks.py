"""Looks told apart from noisy sums."""

from __future__ import annotations

import numpy as np
import pytest

from fedcaptor.common.arrays import Floats
from fedcaptor.common.data.source import load
from fedcaptor.common.look import look_of
from fedcaptor.common.statistics import nearest
from fedcaptor.common.statistics.domain import LOOK, entry_scale
from fedcaptor.server.looks import first_looks, next_looks
from fedcaptor.simulations.looks import corrupted
from tests.common.statistics.test_statistics import FIGURES, GROUPS, Phone

IMAGES = load("embedded").x[:300]


def found_by(phones: Floats, deviation: float, seed: int = 0, most: int = 4, floor: float = 20) -> Floats:
    """Looks after three steps over phones whose looks differ from the server's so much [N, 6]."""
    rng, looks, source = np.random.default_rng(seed), first_looks(IMAGES, 0), np.zeros(6)
    for step in range(3):
        total = rng.normal(0, deviation, LOOK.length(GROUPS, len(looks)))
        for own in phones:
            phone = Phone(GROUPS, [1, 0, 0], **FIGURES)
            phone.look = lambda own=own: own  # type: ignore[misc,method-assign]
            total += LOOK.vector(phone, {"look_source": source, "looks": looks})
        decoded = LOOK.decode(total, GROUPS)
        looks, _ = next_looks(decoded, deviation, entry_scale(6, 2.8), most, floor if step == 2 else 0)
    return looks


def phones_of(corruptions: list[list[str]], count: int) -> tuple[Floats, Floats]:
    """Looks of phones with thirty photos each [N, 6], and the true ones [L, 6]."""
    source, rng = look_of(IMAGES), np.random.default_rng(1)
    true = np.array([look_of(corrupted(IMAGES, each, rng)) - source for each in corruptions])
    own = [
        look_of(corrupted(IMAGES[rng.choice(300, 30)], corruptions[n % len(corruptions)], rng)) - source
        for n in range(count)
    ]
    return np.array(own), true


@pytest.mark.parametrize("deviation", [0.0, 3.0])
def test_two_cameras_are_told_apart(deviation: float) -> None:
    phones, true = phones_of([[], ["blur=1.0"]], 100)
    looks = found_by(phones, deviation)
    assert len(looks) == 2
    for own, label in zip(phones, np.arange(100) % 2, strict=True):
        assert np.linalg.norm(looks[nearest(own, looks)] - true[label]) < 2.5


@pytest.mark.parametrize("deviation", [0.0, 3.0])
def test_photos_like_the_servers_are_one_look_that_is_the_servers(deviation: float) -> None:
    looks = found_by(phones_of([[]], 100)[0], deviation)
    assert len(looks) == 1
    assert np.linalg.norm(looks[0]) < 1


def test_no_more_looks_than_allowed_and_none_of_few_phones() -> None:
    phones, _ = phones_of([[], ["blur=1.5"], ["light=0.4"]], 90)
    assert len(found_by(phones, 0.0)) == 3
    assert len(found_by(phones, 0.0, most=2)) <= 2
    few = np.concatenate([phones[::3], phones[1:20:3]])
    assert len(found_by(few, 0.0, floor=20)) == 1


def test_a_look_that_is_all_noise_is_no_look() -> None:
    """Nobody answered: what is left is the look of the server's own images."""
    rng = np.random.default_rng(0)
    decoded = LOOK.decode(rng.normal(0, 3, LOOK.length(GROUPS, 2)), GROUPS)
    looks, _ = next_looks(decoded, 3.0, entry_scale(6, 2.8), 4)
    assert (len(looks), np.abs(looks).max()) == (1, 0)
