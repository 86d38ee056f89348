"""Seeds as a command line names them."""

from __future__ import annotations

import re
from pathlib import Path

from fedcaptor.common.errors import ConfigError

MAX_SEEDS = 1000

_PART = re.compile(r"(\d{1,9})(?:\.\.(\d{1,9}))?")


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0..4`, `0,3,7` or both, such as `0..2,7`. Raises ConfigError."""
    seeds: list[int] = []
    for part in text.split(","):
        found = _PART.fullmatch(part.strip())
        if found is None:
            raise ConfigError(f"seeds are {text!r}, {part.strip()!r} is no seed: give for example 0..4 or 0,3,7")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ConfigError(f"seeds are {text!r}, {part.strip()} runs backwards: write {last}..{first}")
        if last - first >= MAX_SEEDS - len(seeds):
            raise ConfigError(f"seeds are {text!r}, more than {MAX_SEEDS}: give fewer")
        seeds += range(first, last + 1)
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ConfigError(f"seeds are {text!r}, {twice[0]} is there twice: name each once")
    return tuple(seeds)


def folder_of(directory: Path, seed: int) -> Path:
    """The folder of one seed's run in a sweep's folder."""
    return directory / f"seed-{seed}"
