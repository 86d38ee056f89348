"""Import users' own parts: objects of their modules, which their configuration names as `package.module:object`.

A name is imported, so it must come from whoever runs the process: a configuration file, an option, a call. Nothing that
arrives in a message or lies in a weights file is ever resolved here.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import Any

from fedcaptor.common.errors import ConfigError, FedcaptorError

_NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_own(name: str) -> bool:
    """Tell whether a configured name is `package.module:object`, not the name of a shipped part."""
    return _NAME.fullmatch(name) is not None


def resolve(name: str, key: str, known: str, error: type[FedcaptorError] = ConfigError) -> Any:
    """Import the object that `package.module:object` names, with the current directory on the path.

    `key`: what was configured, and `known`: what else may be given there, both for the message. Raises `error` when the
    name has another form, the module cannot be imported or has no such object.
    """
    path, colon, attribute = name.partition(":")
    if not colon:
        raise error(f"{key} is {name!r}, must be one of {known} or package.module:object")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError, ValueError) as problem:
        raise error(
            f"{key} {name!r} cannot be imported ({problem}): run where {path or 'the package'} lies, "
            f"or use one of {known}"
        ) from problem
