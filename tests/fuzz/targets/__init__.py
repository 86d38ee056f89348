"""The targets, one a module; a name is that of the module."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, cast


class Target(Protocol):
    """What each module has."""

    def seeds(self) -> dict[str, bytes]:
        """Make valid inputs by name."""

    def one(self, data: bytes) -> bool:
        """Try one input. Returns whether it was accepted; raises what is a bug."""


NAMES = sorted(module.name for module in iter_modules(__path__))


def target(name: str) -> Target:
    """Import a target."""
    return cast(Target, import_module(f"{__name__}.{name}"))
