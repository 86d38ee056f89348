"""Reading a configuration: defaults, a TOML file, overrides. Whatever the file holds, an error says what to change."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedcaptor.common.config.schema.configuration import Config
from fedcaptor.common.config.wording import explained, shown
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.files import read_bounded

MAX_BYTES = 1 << 20
"""Most bytes of a file or an override. The shipped scenarios have less than a kilobyte."""

MAX_DEPTH = 8
"""Sections, tables and lists within each other; the schema has four levels."""

RENAMED: Mapping[tuple[str, str], str] = {("faults", "rubbish"): "malformed"}
"""Former names of keys, by section; they are read, with a warning."""

logger = logging.getLogger(__name__)


def load_config(path: Path | Config | None = None, overrides: Iterable[str] = ()) -> Config:
    """Defaults, then the TOML file or another configuration, then `section.key=value` overrides. Raises ConfigError
    naming key and remedy.
    """
    values: dict[str, Any] = {}
    if isinstance(path, Config):
        values = path.model_dump(mode="json")
    elif path is not None:
        values = _renamed(_read(path))
    for override in overrides:
        _apply(values, override)
    return parse(values)


def parse(values: Mapping[str, Any]) -> Config:
    """Validated configuration from nested sections. Raises ConfigError naming key and remedy."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"the configuration is {shown(values)}, must be sections of keys")
    for section, held in values.items():
        _require_plain(str(section)[:80], held)
    try:
        return Config.model_validate(_renamed(values))
    except ValidationError as error:
        raise ConfigError(explained(error)) from None


def _read(path: Path) -> dict[str, Any]:
    content = read_bounded(path, MAX_BYTES, "configuration")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply, the bound is {MAX_DEPTH} levels: correct the file") from None
    except ValueError as error:  # of TOML, of UTF-8, of integers with thousands of digits
        raise ConfigError(f"{path} cannot be read as TOML ({error}): correct the file") from error


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot or not name:
        raise ConfigError(f"override {shown(override)} is not section.key=value, for example run.seed=1")
    name = _present(section, name)
    if not isinstance(values.setdefault(section, {}), dict):
        raise ConfigError(f"[{section}] is {shown(values[section])}, must be a section")
    values[section] = {**values[section], name: _value(key.strip(), text)}


def _value(key: str, text: str) -> Any:
    """What the text is in TOML, or the text itself."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{key[:80]} has more than {MAX_BYTES:,} characters: shorten it")
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except RecursionError:
        raise ConfigError(f"{key[:80]} is nested too deeply, the bound is {MAX_DEPTH} levels: correct it") from None
    except ValueError as error:
        raise ConfigError(f"{key[:80]} cannot be read as TOML ({error}): correct it") from None


def _require_plain(key: str, value: Any, depth: int = 2) -> None:
    """Raise ConfigError on an integer beyond TOML's 64 bits, which cannot even be printed when it has thousands of
    digits, and on deep nesting.
    """
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise ConfigError(f"{key} is an integer of {value.bit_length()} bits, the bound is 64 with the sign: lower it")
    if not isinstance(value, Mapping | list | tuple):
        return
    if depth > MAX_DEPTH:
        raise ConfigError(f"{key} is nested too deeply, the bound is {MAX_DEPTH} levels: correct it")
    inner = value.items() if isinstance(value, Mapping) else enumerate(value)
    for name, held in inner:
        _require_plain(f"{key}.{str(name)[:80]}", held, depth + 1)


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections with every key under its present name."""
    found = dict(values)
    for (section, former), present in RENAMED.items():
        held = found.get(section)
        if not isinstance(held, Mapping) or former not in held:
            continue
        if present in held:
            raise ConfigError(f"{section}.{former} is the former name of {section}.{present}: give the latter alone")
        name = _present(section, former)
        found[section] = {name if key == former else key: value for key, value in held.items()}
    return found


def _present(section: str, name: str) -> str:
    """The present name of a key; a former one is told."""
    present = RENAMED.get((section, name))
    if present is None:
        return name
    logger.warning("%s.%s is now %s.%s: rename it", section, name, section, present)
    return present
