"""Errors of a configuration in words: the key, its value, the bound and the remedy."""

from __future__ import annotations

import difflib
import reprlib
from typing import Any

from pydantic import ValidationError

from fedcaptor.common.config.schema.configuration import Config
from fedcaptor.common.config.schema.sections import keys_of

_MOST = 5  # errors told at once
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def explained(error: ValidationError) -> str:
    """One line for all that pydantic found."""
    faults = error.errors(include_url=False)
    told = [_explain(fault) for fault in faults[:_MOST]]
    if len(faults) > _MOST:
        told.append(f"and {len(faults) - _MOST} more")
    return "; ".join(told)


def shown(value: object) -> str:
    """A value as Python writes it, shortened: it may be a whole file's content."""
    return _SHORT.repr(value)


def _explain(fault: Any) -> str:
    path = [str(part)[:80] for part in fault["loc"]]
    key = ".".join(path)
    if fault["type"] == "extra_forbidden":
        known = list(Config.model_fields) if len(path) == 1 else keys_of(path[0])
        near = difflib.get_close_matches(path[-1], known, 1)
        return f"{key} is unknown" + (f": did you mean {near[0]}?" if near else f", known are {', '.join(known)}")
    said = fault["msg"].removeprefix("Value error, ")
    return f"{key} is {shown(fault['input'])}: {said}" if key else said
