"""A configuration written back as TOML: the part of it that one reader needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedcaptor.common.config.schema.base import Reader, readers
from fedcaptor.common.config.schema.configuration import Config
from fedcaptor.common.config.schema.sections import is_list, keys_of

_PHONE_HEAD = """\
# What a phone of this run insists on and works with: all keys that phones read, and no other.
# Written by `fedcaptor config SCENARIO --for phone`.
"""


def phone_config(config: Config) -> str:
    """TOML text of a phone's file: with it, a phone does what it does with the whole configuration. A key without a
    default is written too where its section needs it, such as the share of a tier.
    """
    return _PHONE_HEAD + "".join(_section(name, getattr(config, name), Reader.phone) for name in Config.model_fields)


def toml(value: Any) -> str:
    """A value of the schema in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml(key)} = {toml(held)}" for key, held in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return repr(value)


def _section(name: str, held: Any, reader: Reader) -> str:
    title, entries = (f"[[{name}]]", held) if is_list(name) else (f"[{name}]", [held])
    keys = [key for key, field in keys_of(name).items() if reader in readers(field)]
    if not keys:
        return ""
    needed = [key for key, field in keys_of(name).items() if key in keys or field.is_required()]
    return "".join(
        f"\n{title}\n" + "".join(f"{key} = {toml(getattr(entry, key))}\n" for key in needed) for entry in entries
    )
