"""Statistics: what phones add up, one object each, and the registry of them.

A new one is a module here with a subclass of `Statistic` that is added to the registry; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedcaptor.common.errors import ConfigError, WireError
from fedcaptor.common.statistics.base import (
    FilterScores,
    PhoneView,
    Precision,
    Statistic,
    in_block,
    nearest,
)
from fedcaptor.common.statistics.domain import LOOK, MOMENTS
from fedcaptor.common.statistics.outcome import OUTCOME, OUTCOME_FIGURES, outcome_means
from fedcaptor.common.statistics.scores import SCORES
from fedcaptor.common.statistics.usage import COOCCURRENCE, TOPICS, USAGE

__all__ = [
    "BUILT_IN",
    "COOCCURRENCE",
    "LOOK",
    "MOMENTS",
    "OUTCOME",
    "OUTCOME_FIGURES",
    "SCORES",
    "TOPICS",
    "USAGE",
    "FilterScores",
    "PhoneView",
    "Precision",
    "Statistic",
    "asked",
    "in_block",
    "kinds",
    "nearest",
    "outcome_means",
    "register",
    "registered",
    "unregister",
]

_registry: dict[str, Statistic] = {}


def register(statistic: Statistic) -> None:
    """Add a statistic; registering the same object again changes nothing. Raises ConfigError where its name, or its
    kind with its tensors, is another one's.
    """
    for other in _registry.values():
        if other is statistic:
            return
        if other.name == statistic.name or (other.kind, other.tensors) == (statistic.kind, statistic.tensors):
            raise ConfigError(
                f"statistic {statistic.name!r} of kind {statistic.kind!r} is taken by {other.name!r}: rename it"
            )
    _registry[statistic.name] = statistic


def registered() -> tuple[Statistic, ...]:
    """All statistics, in the order in which a round asks for them."""
    return tuple(_registry.values())


def kinds() -> tuple[str, ...]:
    """Kinds of sums, as messages and metrics name them."""
    return tuple(dict.fromkeys(statistic.kind for statistic in registered()))


def asked(kind: str, tensors: Iterable[str]) -> Statistic:
    """The statistic of `kind` that a request with these tensors asks for. Raises WireError where there is none."""
    names = frozenset(tensors)
    of_kind = [statistic for statistic in registered() if statistic.kind == kind]
    fitting = [statistic for statistic in of_kind if statistic.tensors <= names]
    if not fitting:
        needed = " or ".join(sorted({name for statistic in of_kind for name in statistic.tensors}))
        raise WireError("missing_tensor", f"a sum of kind {kind} needs {needed or 'another kind'}")
    return max(fitting, key=lambda statistic: len(statistic.tensors))


def unregister(name: str) -> None:
    """Take back what `register` added. Raises ConfigError for a built-in statistic, or one that is not there."""
    if name not in _registry or _registry[name] in BUILT_IN:
        raise ConfigError(f"statistic {name!r} is not one that was added: it cannot be removed")
    del _registry[name]


BUILT_IN = (LOOK, MOMENTS, COOCCURRENCE, USAGE, TOPICS, SCORES, OUTCOME)
"""The statistics that every run by sums asks for, in the order of a round."""

for _statistic in BUILT_IN:
    register(_statistic)
