"""Add up the replies of a sum without masks, on the server."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.privacy.sums import SumSpec, decode


class PlainAggregator:
    """Add replies as they come, in one accumulator. The server sees each: this is for tests and simulation."""

    label = "sums not encrypted"

    def __init__(self, spec: SumSpec) -> None:
        self._spec = spec
        self._total = np.zeros(spec.length, np.uint32)
        self._count = 0

    @property
    def count(self) -> int:
        """Return how many replies were added so far."""
        return self._count

    def add(self, reply: NDArray[np.uint32]) -> None:
        """Add one reply, uint32 [length]. Raises PrivacyError on another type, shape, range or one reply too many."""
        spec = self._spec
        _require(
            reply.dtype == np.uint32 and reply.shape == (spec.length,),
            f"sum {spec.name}: reply is {reply.dtype} {reply.shape}, expected uint32 ({spec.length},); discard it",
        )
        _require(
            int(reply.max()) < 2**spec.bits,
            f"sum {spec.name}: reply holds {int(reply.max())}, the bound is 2**{spec.bits} - 1; discard it",
        )
        _require(
            self._count < spec.cohort,
            f"sum {spec.name}: more replies than the cohort of {spec.cohort}; discard the reply, it is a duplicate",
        )
        self._total += reply
        self._count += 1

    def finish(self) -> NDArray[np.float64]:
        """Return the decoded sum, float64 [length] in the units of `clip`. Raises PrivacyError on too few replies."""
        spec = self._spec
        needed = max(spec.min_cohort, spec.min_survivors)
        _require(
            self._count >= needed,
            f"sum {spec.name}: {self._count} replies, at least {needed} needed; wait longer or ask a larger cohort",
        )
        return decode(self._total, spec)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise PrivacyError(message)
