"""Seeds as text: ranges, lists, and what is refused with a remedy."""

import pytest

from fedcaptor.common.errors import ConfigError
from fedcaptor.simulations.seeds import MAX_SEEDS, parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0..4", (0, 1, 2, 3, 4)), ("0,3,7", (0, 3, 7)), ("5", (5,)), ("2..2", (2,)), ("0..2, 7", (0, 1, 2, 7))],
)
def test_seeds_as_text(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is no seed: give for example 0..4"),
        ("0,,2", "'' is no seed"),
        ("-1", "'-1' is no seed"),
        ("0-4", "'0-4' is no seed"),
        ("0..", "'0..' is no seed"),
        ("one", "'one' is no seed"),
        ("4..0", "4..0 runs backwards: write 0..4"),
        ("0..3,2", "2 is there twice: name each once"),
        (f"0..{MAX_SEEDS}", f"more than {MAX_SEEDS}: give fewer"),
        ("0..999999999", "more than"),
        (f"0..{MAX_SEEDS - 1},{MAX_SEEDS}", "more than"),
    ],
)
def test_seeds_that_make_no_sense(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_seeds(text)
    assert words in str(caught.value)
    assert repr(text) in str(caught.value)
