"""Find the cohorts and dropouts that masked sums allow, for an error that says what would work.

The bound of 255 holders a phone limits large cohorts, whole phones limit small ones; in between the topology exists
where 2 × dropout + corrupted is below 1. Every value that is named here was tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from fedcaptor.common.config import Privacy
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.secure.terms import Terms
from fedcaptor.common.secure.topology import MAX_HOLDERS, plan_topology

_TRIED = (20, 25, 30, 40, 50, 60, 80, 100, 120, 150, 200, MAX_HOLDERS + 1)
_LONG = 5_000  # phones beyond which trying dropouts may take minutes


@dataclass(frozen=True)
class Masks:
    """Hold the privacy settings that decide whether a cohort's sums can be masked."""

    min_cohort: int
    dropout: float
    corrupted: float

    @classmethod
    def of(cls, privacy: Privacy) -> Masks:
        return cls(privacy.min_cohort, privacy.dropout, privacy.corrupted)

    def survivors(self, cohort: int) -> int:
        """Return the fewest phones whose vectors a sum over the cohort needs."""
        return max(self.min_cohort, math.ceil((1 - self.dropout) * cohort))

    def terms(self, cohort: int) -> Terms:
        """Return the terms of a sum over the cohort, of any length. Raises PrivacyError on values out of bounds."""
        minima = self.min_cohort, self.survivors(cohort)
        return Terms("0" * 64, 1, 32, cohort, *minima, self.dropout, self.corrupted)

    def require(self, cohort: int) -> None:
        """Raise PrivacyError unless the fewest survivors and the whole cohort can be masked, naming what can."""
        terms = self.terms(cohort)
        try:
            for phones in sorted({self.survivors(cohort), cohort}):
                plan_topology(terms, phones)
        except PrivacyError as error:
            raise PrivacyError(f"{error}. {self.advice(cohort)}") from None

    def allows(self, cohort: int) -> bool:
        """Tell whether sums over the cohort can be masked."""
        try:
            terms = self.terms(cohort)
            return all(plan_topology(terms, phones) for phones in {self.survivors(cohort), cohort})
        except PrivacyError:
            return False

    def largest_dropout(self, cohort: int) -> float | None:
        """Return the largest dropout, in hundredths and at most this one, that the cohort allows; None for none."""
        allowed = _last(lambda n: replace(self, dropout=n / 100).allows(cohort), 0, math.floor(self.dropout * 100))
        return None if allowed is None else allowed / 100

    def nearest_cohorts(self, cohort: int) -> list[int]:
        """Return the nearest smaller and the nearest larger cohort that are allowed, as far as they were found."""
        tried = [size for size in sorted({self.min_cohort, *_TRIED}) if size >= self.min_cohort and self.allows(size)]
        smaller = [size for size in tried if size < cohort]
        larger = [size for size in tried if size > cohort]
        found = [_last(self.allows, smaller[-1], cohort - 1) or smaller[-1]] if smaller else []
        if larger:
            found.append(next(size for size in range(cohort + 1, larger[0] + 1) if self.allows(size)))
        return found

    def advice(self, cohort: int) -> str:
        """Say what to change, for a cohort that is not allowed."""
        values = f"privacy.dropout {self.dropout:g} with privacy.corrupted {self.corrupted:g}"
        sizes = [f"{size:,}" for size in self.nearest_cohorts(cohort)]
        dropout = self.largest_dropout(cohort) if cohort <= _LONG else None
        told = f"{values} allows a cohort of {' or '.join(sizes)}" if sizes else f"{values} allows no cohort"
        return told + (f", {cohort:,} phones allow privacy.dropout {dropout:g}" if dropout is not None else "")


def _last(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """Find by bisection the last number for which a property holds that is lost once; None if not even at `low`."""
    if not holds(low):
        return None
    if holds(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
