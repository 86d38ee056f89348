"""Take the server's last step: restore secrets from shares, and the masks that do not cancel out of the sum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.secure import keys


class Unopened(PrivacyError):
    """Raised when masks cannot be taken off because of what some phones sent; `phones` are their node ids.

    It has to be certain whose fault that is. A phone leaves a mark of each share with the server. A holder shows no
    share that does not fit its mark, and the server takes none. So

    - where t shares are shown and the secret is not the one committed to, its owner made them: nobody else can have;
    - where fewer are shown, although more holders answered without showing one than may be corrupted, an honest one is
      among them: what the owner sent to it was no good.

    The latter holds but for a probability of 2**-(security+1), as an honest owner draws its holders at random
    (`most_corrupted`). In all other cases nobody is blamed, and never a holder that shows nothing.
    """

    def __init__(self, phones: Iterable[int]) -> None:
        self.phones = tuple(phones)
        super().__init__(
            f"secure sum: the secrets of {len(self.phones)} phones do not open, by their own fault: repeat the sum "
            "without them"
        )


def pair_seeds(
    private: bytes, session: bytes, place: int, others: Iterable[tuple[int, bytes]]
) -> Iterator[tuple[int, bytes]]:
    """Yield (place of the other, seed of the common mask) for a dropped phone and its survivors among `others`.

    `others` are (place, public mask key).
    """
    agreement = keys.Agreement(private)
    for other, public in others:
        yield other, keys.mask_seed(agreement.secret(public), session, place, other)
