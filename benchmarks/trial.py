"""Kept until the fleet's modules follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from benchmarks.batches import in_batches as in_batches

T = TypeVar("T")


@dataclass(eq=False)
class Latest(Generic[T]):
    """What `make` gave for the last arguments."""

    make: Callable[..., T]
    arguments: tuple[Any, ...] | None = None
    value: Any = None

    def __call__(self, *arguments: Any) -> T:
        if self.arguments != arguments:
            self.arguments, self.value = None, None
            self.value = self.make(*arguments)
            self.arguments = arguments
        found: T = self.value
        return found
