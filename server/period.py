"""Tell which sums count together against a phone's budget of one period, and from when on a further round fits in it.

A phone was charged for a sum after its round began and before the sum was over. So of the sums before it, a sum can
fall into one period with those alone that were not over a period before its round began.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fedcaptor.common.privacy.zcdp import PERIOD_DAYS

DAY_SECONDS = 86_400.0
PERIOD_SECONDS = PERIOD_DAYS * DAY_SECONDS


@dataclass(frozen=True)
class Charge:
    """Hold a sum that each phone which answered it was charged for.

    `over`: when it was, in seconds since 1970; `lost`: it came to nothing after phones were charged.
    """

    spec: Any
    over: float
    lost: bool = False


def counted(charges: Iterable[Charge], begun: float, period: float) -> list[Charge]:
    """Return the charges that may count together with sums of a round that has `begun` at that time."""
    return [charge for charge in charges if charge.over > begun - period]


def fits_from(
    charges: Sequence[Charge], now: float, period: float, fits: Callable[[Sequence[Charge]], bool]
) -> float | None:
    """Return the earliest time from `now` on at which what counts then `fits`; None: at no time."""
    leaving = sorted(charge.over + period for charge in charges if now < charge.over + period < math.inf)
    return next((at for at in [now, *leaving] if fits(counted(charges, at, period))), None)


def day_of(at: float) -> str:
    """Return the first whole day (UTC) from a time on, as `2026-11-30`."""
    return f"{datetime.fromtimestamp(math.ceil(at / DAY_SECONDS) * DAY_SECONDS, UTC):%Y-%m-%d}"
