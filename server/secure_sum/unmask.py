"""Take the server's last step: restore secrets from shares, and the masks that do not cancel out of the sum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.secure import keys, shamir

Places = NDArray[np.int64]
Shares = NDArray[np.uint8]


@dataclass(eq=False, repr=False)
class Opener:
    """Put secrets together from `threshold` shares, and remember whose shares were wrong."""

    threshold: int
    malicious: set[int] = field(default_factory=set)

    def secret(
        self,
        holders: NDArray[np.int64],
        points: NDArray[np.int64],
        shares: NDArray[np.uint8],
        right: Callable[[bytes], bool],
    ) -> bytes:
        """Return the secret that is `right` from shares [m, 32] of `holders` at `points`.

        One wrong share is found where there is one more than the threshold. Raises PrivacyError otherwise.
        """
        trusted = [i for i, holder in enumerate(holders.tolist()) if holder not in self.malicious]
        if len(trusted) < self.threshold:
            raise PrivacyError(
                f"secure sum: {len(trusted)} shares of a phone's secret, {self.threshold} needed: too many phones "
                "dropped out or gave wrong shares; ask a larger cohort or plan for more dropouts"
            )
        for subset in _subsets(trusted, self.threshold):
            secret = shamir.combine(points[subset], shares[subset])
            if right(secret):
                self._note(subset, holders, trusted)
                return secret
        raise PrivacyError(
            f"secure sum: {len(trusted)} shares of a phone's secret do not fit together: repeat the sum without "
            "phones that alter their shares"
        )

    def _note(self, subset: list[int], holders: Places, trusted: list[int]) -> None:
        """Note whose share was wrong: all in the right subset are honest, so a first one that it leaves out is not."""
        self.malicious |= {int(holders[i]) for i in trusted[: self.threshold] if i not in subset}


def _subsets(trusted: list[int], threshold: int) -> Iterator[list[int]]:
    """Yield the first shares, then all but one of them with the next one."""
    yield trusted[:threshold]
    for left_out in range(threshold if len(trusted) > threshold else 0):
        yield trusted[:left_out] + trusted[left_out + 1 : threshold + 1]


def pair_seeds(
    private: bytes, session: bytes, place: int, others: Iterable[tuple[int, bytes]]
) -> Iterator[tuple[int, bytes]]:
    """Yield (place of the other, seed of the common mask) for a dropped phone and its survivors among `others`.

    `others` are (place, public mask key).
    """
    agreement = keys.Agreement(private)
    for other, public in others:
        yield other, keys.mask_seed(agreement.secret(public), session, place, other)
