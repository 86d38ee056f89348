"""Configurations: any TOML file, then any override."""

from __future__ import annotations

from pathlib import Path

from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError
from tests.fuzz.files import file_of
from tests.fuzz.parts import join, split

SHIPPED = Path(__file__).parents[3] / "simulations" / "scenarios"


def seeds() -> dict[str, bytes]:
    overrides = {"demo": b"run.seed=3", "flower": b'data.source="embedded"', "drift": b"personal.ladder=[0.3, 0.6]"}
    return {name: join((SHIPPED / f"{name}.toml").read_bytes(), value) for name, value in overrides.items()}


def one(data: bytes) -> bool:
    content, override = split(data, 2)[:2]
    with file_of(content, "scenario.toml") as path:
        try:
            load_config(path, [override.decode(errors="replace")] if override else [])
            return True
        except ConfigError as error:
            told = str(error)
    assert len(told) < 5_000
    return False
