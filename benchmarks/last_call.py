"""Methods that remember what they gave last: the keys of rows come sorted, and one piece of evidence is large."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Concatenate, ParamSpec, TypeVar

S = TypeVar("S")
P = ParamSpec("P")
T = TypeVar("T")


def remembers_last_call(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Let the same arguments again give a method's value at hand, which is let go before another is made."""
    place = f"_last_{method.__name__}"

    def remembered(self: S, /, *arguments: P.args, **named: P.kwargs) -> T:
        at_hand = vars(self)
        if place not in at_hand or at_hand[place][0] != (arguments, named):
            at_hand.pop(place, None)
            at_hand[place] = (arguments, named), method(self, *arguments, **named)
        found: T = at_hand[place][1]
        return found

    return update_wrapper(remembered, method)
