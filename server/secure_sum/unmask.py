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


class Unopened(PrivacyError):
    """Raised when masks cannot be taken off because of what some phones sent; `phones` are their node ids."""

    def __init__(self, phones: Iterable[int]) -> None:
        self.phones = tuple(phones)
        super().__init__(
            f"secure sum: the secrets of {len(self.phones)} phones do not open, by their own fault: repeat the sum "
            "without them"
        )


class BadDealer(PrivacyError):
    """Raised for a phone whose secret does not open, though its holders cannot be the reason."""


@dataclass(eq=False, repr=False)
class Opener:
    """Put secrets together from `threshold` shares, and remember whose shares were wrong: these are tried last.

    `corrupted`: how many of an honest phone's holders side with an attacker at most (`most_corrupted`).

    Who is to blame for a secret that does not open? The dealer sent a commitment, and shares that only their holders
    can read. Suppose that it is honest. Then the m shares that are shown lie on one polynomial, but for those of at
    most c corrupted holders, and the polynomial's secret is right. Two polynomials have at most t - 1 points in common.
    So the dealer is proved a liar where

    - m - w of the shares lie on one polynomial with a wrong secret, and m - w - c >= t: one honest holder's share at
      least would have to be off it;
    - no polynomial holds all but (m - t) // 2 of the shares, and c is no more than that.

    In all other cases nobody is blamed. A holder never is: a share that is off may be as its dealer sent it.
    """

    threshold: int
    corrupted: int
    suspects: set[int] = field(default_factory=set)

    def secret(
        self,
        holders: NDArray[np.int64],
        points: NDArray[np.int64],
        shares: NDArray[np.uint8],
        right: Callable[[bytes], bool],
    ) -> bytes:
        """Return the secret that is `right` from shares [m, 32] of `holders` at `points`.

        (m - threshold) // 2 wrong shares are found, and one where there is one more than the threshold. Raises
        PrivacyError otherwise, `BadDealer` where the phone itself made its shares or their commitment wrong.
        """
        t, m = self.threshold, len(holders)
        if m < t:
            raise PrivacyError(
                f"secure sum: {m} shares of a phone's secret, {t} needed: too many phones dropped out; "
                "ask a larger cohort or plan for more dropouts"
            )
        order = sorted(range(m), key=lambda i: int(holders[i]) in self.suspects)
        for subset in _subsets(order, t):
            secret = shamir.combine(points[subset], shares[subset])
            if right(secret):
                self.suspects |= {int(holders[i]) for i in order[:t] if i not in subset}
                return secret
        good = shamir.agreeing(points, shares, t)
        wrong = (m - t) // 2
        if good is not None:
            some = np.flatnonzero(good)[:t]
            secret = shamir.combine(points[some], shares[some])
            if right(secret):
                self.suspects |= set(holders[~good].tolist())
                return secret
            wrong = int((~good).sum())
        proved = self.corrupted <= wrong if good is None else m - wrong - self.corrupted >= t
        raise (BadDealer if proved else PrivacyError)(
            f"secure sum: {m} shares of a phone's secret do not fit together: repeat the sum without "
            "phones that alter their shares"
        )


def _subsets(order: list[int], threshold: int) -> Iterator[list[int]]:
    """Yield the first shares, then, with one to spare, all but one of them with the next one.

    With more to spare `agreeing` finds what is wrong.
    """
    yield order[:threshold]
    for left_out in range(threshold if len(order) == threshold + 1 else 0):
        yield order[:left_out] + order[left_out + 1 : threshold + 1]


def pair_seeds(
    private: bytes, session: bytes, place: int, others: Iterable[tuple[int, bytes]]
) -> Iterator[tuple[int, bytes]]:
    """Yield (place of the other, seed of the common mask) for a dropped phone and its survivors among `others`.

    `others` are (place, public mask key).
    """
    agreement = keys.Agreement(private)
    for other, public in others:
        yield other, keys.mask_seed(agreement.secret(public), session, place, other)
