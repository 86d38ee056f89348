"""Random streams: each name has draws of its own, whatever zeros are appended to its seed."""

from itertools import combinations, product

import numpy as np
import pytest

from fedcaptor.common.config import parse
from fedcaptor.common.random_streams import Stream, stream, stream_of_digest
from fedcaptor.common.tiers import drawn


def seeds_of(seed: int) -> dict[str, list[int]]:
    """What generators of one run are seeded with, by name and keys: keys from 0 to 2 each."""
    return {
        f"{name.name}{keys}": [seed, name.number, *keys]
        for name in Stream
        for keys in product(range(3), repeat=len(name.keys))
    }


def padded(words: list[int]) -> tuple[int, ...]:
    """The words as `SeedSequence` mixes them: filled up with zeros to its pool of four."""
    return (*words, *[0] * (4 - len(words)))


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_no_two_streams_of_a_run_draw_the_same(seed: int) -> None:
    seeds = seeds_of(seed)
    assert len({padded(words) for words in seeds.values()}) == len(seeds)
    draws = {name: np.random.default_rng(words).bytes(16) for name, words in seeds.items()}
    for (one, first), (other, second) in combinations(draws.items(), 2):
        assert first != second, (one, other)


def test_zeros_at_the_end_of_a_seed_change_nothing() -> None:
    """This is why a number belongs to one name, and a name has a fixed number of keys."""
    assert np.random.default_rng([3, 4]).bytes(16) == np.random.default_rng([3, 4, 0]).bytes(16)


def test_a_partition_and_the_first_phone_s_tier_are_drawn_apart() -> None:
    assert stream(0, Stream.PARTITION).bytes(16) != stream(0, Stream.TIER, 0).bytes(16)


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        (Stream.HABITS, (), [7, 1]),
        (Stream.IMAGES, (2, 5), [7, 2, 2, 5]),
        (Stream.CORRECTIONS, (), [7, 3]),
        (Stream.TIER, (9,), [7, 4, 9]),
        (Stream.OWN_IMAGES, (1,), [7, 5, 1]),
        (Stream.REFERENCE, (), [7, 7]),
        (Stream.SUMMED_NOISE, (), [7, 11]),
        (Stream.LOCAL_ANSWERS, (), [7, 12]),
        (Stream.MALICIOUS, (), [7, 21]),
        (Stream.LOCAL_TRAINING, (3, 6), [7, 22, 3, 6]),
    ],
)
def test_published_figures_rest_on_these_seeds(name: Stream, keys: tuple[int, ...], words: list[int]) -> None:
    assert stream(7, name, *keys).bytes(16) == np.random.default_rng(words).bytes(16)


def test_a_stream_has_all_its_keys() -> None:
    with pytest.raises(ValueError, match="stream TIER has the keys"):
        stream(0, Stream.TIER)


def test_a_digest_is_read_from_its_front() -> None:
    digest = "0123456789abcdef" * 4
    expected = np.random.default_rng([5, 8, 0x0123456789ABCDEF]).bytes(16)
    assert stream_of_digest((5, 8), digest).bytes(16) == expected
    assert stream_of_digest([5], digest, 15).bytes(16) == np.random.default_rng([5, 0x0123456789ABCDE]).bytes(16)


def test_tiers_are_drawn_from_their_stream() -> None:
    tiers = [{"name": "low", "share": 0.5}, {"name": "high", "share": 0.5}]
    config = parse({"tiers": tiers, "run": {"seed": 3}})
    below = [np.random.default_rng([3, 4, phone]).random() < 0.5 for phone in range(50)]
    assert [tier is not None and tier.name == "low" for tier in (drawn(config, n) for n in range(50))] == below
