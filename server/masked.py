"""Take one masked sum over the grid: each of the six steps of `ServerSum` is asked like any other question."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from fedcaptor.common.arrays import Tensors
from fedcaptor.common.config import Config
from fedcaptor.common.errors import PrivacyError, StateError, WireError
from fedcaptor.common.messages import Header, MaskedReply, MaskedRequest, check_answers
from fedcaptor.common.privacy.sums import decode
from fedcaptor.common.secure.messages import MASKING, STEPS
from fedcaptor.common.wire import pack, unpack
from fedcaptor.server.secure_sum.server_sum import ServerSum
from fedcaptor.server.secure_sum.unmask import Unopened
from fedcaptor.server.sum_log import SumLog

Take = Callable[[Message, int, Header], None]
Exchange = Callable[[Mapping[int, Header], Callable[[int], RecordDict], Take, int], dict[str, Any]]


@dataclass(frozen=True)
class Masking:
    """Describe how sums are masked: `dropout` and `corrupted` as in `Terms`.

    `attempt(n)` names the n-th try of a sum by 32 hex digits. No two tries may share a name, or phones that answered
    one would decline the other; a simulation, which a replay repeats in every byte, may count. `enrolled` tells whether
    an identity is on the operator's register: others would make all their neighbours decline; None: there is none.
    """

    dropout: float
    corrupted: float
    attempt: Callable[[int], str] = lambda number: secrets.token_hex(16)
    enrolled: Callable[[bytes], bool] | None = None


def masking_of(config: Config, enrolled: Callable[[bytes], bool] | None = None) -> Masking | None:
    """Return how sums are masked as configured; None where sums are plain, or answers local."""
    privacy = config.privacy
    return Masking(privacy.dropout, privacy.corrupted, enrolled=enrolled) if privacy.sums == "masked" else None


def masked_sum(
    request: MaskedRequest,
    tensors: Tensors,
    nodes: Iterable[int],
    exchange: Exchange,
    log: SumLog,
    enrolled: Callable[[bytes], bool] | None = None,
) -> tuple[NDArray[np.float64], int]:
    """Return the decoded sum [length] and how many vectors are in it.

    `exchange` asks all nodes of one step, of which so many are enough, and returns the tally so far. `log`: steps that
    are over are taken from it, those that follow are stored in it.
    Raises Lost when too few phones are left after a step or secrets do not open, `Early` while no vector was sent.
    """
    server, over = ServerSum(request.terms(), list(nodes), enrolled), log.closed
    try:
        for number in range(STEPS):
            if number < over:
                _restore(server, log, number)
                continue
            header = request.model_copy(update={"step": number})
            given = tensors if number == MASKING else {}

            def content(node: int, header: MaskedRequest = header, given: Tensors = given) -> RecordDict:
                return pack(header, {**given, "secure": np.frombuffer(server.request(node), np.uint8)})

            enough = server.enough
            tally = exchange(dict.fromkeys(server.waiting, header), content, _taker(server, log), enough)
            log.close(server.total, tally)
            server.advance()
    except Unopened as error:
        raise Lost("unopened", f"{request.sum.name}: {error}", error.phones) from None
    except PrivacyError as error:
        text = f"{request.sum.name}: {error}"
        raise (Early(text) if server.step < MASKING else Lost("late", text)) from None
    return decode(server.result(), request.sum.spec()), server.survivors


def _restore(server: ServerSum, log: SumLog, step: int) -> None:
    try:
        server.restore(log.replies(step), log.total())
    except (WireError, KeyError, ValueError) as error:
        raise StateError(f"the sum in progress does not fit its question ({error}); restore the database") from error


class Lost(PrivacyError):
    """Raised for a sum that came to nothing. `reason` is one of `journal.LOST`; `blamed`: nodes whose fault it is."""

    def __init__(self, reason: str, detail: str, blamed: Sequence[int] = ()) -> None:
        super().__init__(detail)
        self.reason, self.blamed = reason, tuple(blamed)


class Early(Lost):
    """Raised for a masked sum that ended before any vector was sent: asking again costs no phone anything."""

    def __init__(self, detail: str) -> None:
        super().__init__("early", detail)


def _taker(server: ServerSum, log: SumLog) -> Take:
    def take(reply: Message, node: int, request: Header) -> None:
        header, tensors = unpack(reply.content, MaskedReply)
        check_answers(request, header)
        log.add(node, server.add(node, tensors["secure"].tobytes()))

    return take
