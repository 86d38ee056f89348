"""Keep on the server who holds whose shares: both directions of the phones' choices."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


class Graph:
    """Hold who chose whom. `choices` maps the place of each phone that drew holders to their places, in order."""

    def __init__(self, phones: int, choices: Mapping[int, NDArray[np.uint32]]) -> None:
        self.choices = {place: holders.astype(np.int64) for place, holders in sorted(choices.items())}
        owners = np.repeat(np.fromiter(self.choices, np.int64), [len(h) for h in self.choices.values()])
        slots = np.concatenate([np.arange(len(h)) for h in self.choices.values()])
        holders = np.concatenate(list(self.choices.values()))
        order = np.argsort(holders, kind="stable")
        ends = np.cumsum(np.bincount(holders, minlength=phones))[:-1]
        self._owners, self._slots = np.split(owners[order], ends), np.split(slots[order], ends)

    def chosen_by(self, place: int) -> tuple[Places, Places]:
        """Return the phones that drew this one, in order, and at which of their slots it is."""
        return self._owners[place], self._slots[place]

    def neighbours(self, place: int) -> tuple[Places, NDArray[np.bool_]]:
        """Return a phone's holders and those who drew it, in order, and which are the latter.

        The phone must have drawn some holders.
        """
        owners, _ = self.chosen_by(place)
        places = np.union1d(self.choices[place], owners)
        return places, np.isin(places, owners)
