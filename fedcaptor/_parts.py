"""Values of a configuration as Python users write them, parts of their own included."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedcaptor.common.errors import ConfigError
from fedcaptor.common.plugins import resolve

Value = bool | int | float | str | Path | list[Any] | tuple[Any, ...] | Mapping[str, Any] | Callable[..., Any]


def as_override(item: tuple[str, Value]) -> str:
    """`section.key=value` of a key and its value. Raises ConfigError for a value that no configuration can hold."""
    key, value = item
    return f"{key}={_toml(key, value)}"


def _toml(key: str, value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int | float | str | Path):
        return json.dumps(str(value) if isinstance(value, Path) else value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(key, inner) for inner in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(k)} = {_toml(key, inner)}' for k, inner in value.items())}}}"
    if callable(value):
        return json.dumps(name_of(value, key))
    raise ConfigError(f"{key} is a {type(value).__name__}, must be text, a number, a list or a part of your own")


def name_of(part: Callable[..., Any], key: str) -> str:
    """`package.module:object` of a function or class at the top level of a module, so that it is found by its name.

    Raises ConfigError for any other, such as a lambda.
    """
    name = f"{getattr(part, '__module__', '')}:{getattr(part, '__qualname__', '')}"
    try:
        found = resolve(name, key, "the shipped ones")
    except ConfigError:
        found = None
    if found is not part:
        raise ConfigError(f"{key} is {part!r}, which no module has by that name: define it at the top of a module")
    return name
