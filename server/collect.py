"""Exchange messages with phones: push requests, pull replies until a deadline, check each, add up what is valid."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedcaptor.common.arrays import Tensors
from fedcaptor.common.config import Rounds
from fedcaptor.common.errors import PrivacyError, WireError
from fedcaptor.common.messages import (
    DeliverReply,
    DeliverRequest,
    Header,
    LocalReply,
    LocalRequest,
    MaskedRequest,
    SumFields,
    SumReply,
    SumRequest,
    check_answers,
    digest_of,
)
from fedcaptor.common.privacy.local import Bits, LocalSpec
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.secure.delivery import sign
from fedcaptor.common.statistics import asked as asked_for
from fedcaptor.common.wire import pack, unpack
from fedcaptor.server import plausible
from fedcaptor.server.activity import Activity
from fedcaptor.server.masked import Early, Lost, Masking, Take, masked_sum
from fedcaptor.server.plain_sum import PlainAggregator
from fedcaptor.server.sum_log import SumLog

OnReply = Callable[[int, int], None]
Content = Callable[[int], RecordDict]

MASKED_STEPS = ("keys", "choice", "shares", "vector", "list", "opening")
"""Names of the steps of a masked sum, by their number in messages."""
RESULTS = ("ok", "declined", "offline", "late", "refused")
"""What becomes of a message that is sent to a phone: one of these."""
_OFFLINE = (ErrorCode.NODE_UNAVAILABLE,)
_LATE = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)


@dataclass
class Tally:
    """Count what became of the messages of one phase; `bytes_down` and `bytes_up` are payload to and from phones.

    `asked` and `replies` are phones. `messages` counts what was sent, by "step/result" with `RESULTS`, and `traffic`
    bytes by "step/down" and "step/up"; a step is one of `MASKED_STEPS`, or the kind of a question without steps.
    `others`: the nodes that refused a delivery because their base model has other weights; `silent`: those without any
    valid reply.
    """

    asked: int = 0
    replies: int = 0
    dropped: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    traffic: Counter[str] = field(default_factory=Counter)
    others: list[int] = field(default_factory=list)
    silent: list[int] = field(default_factory=list)

    def __add__(self, other: Tally) -> Tally:
        return Tally(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @classmethod
    def of(cls, counts: Mapping[str, Any]) -> Self:
        """Make the tally of what `as_dict` gave; of nothing where that is empty."""
        return cls(**{**counts, **{name: Counter(counts.get(name, {})) for name in _COUNTED}})

    def as_dict(self) -> dict[str, Any]:
        return {
            "asked": self.asked,
            "replies": self.replies,
            "dropped": self.dropped,
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
            **{name: dict(sorted(getattr(self, name).items())) for name in _COUNTED},
        }


_COUNTED = ("refused", "messages", "traffic")


@dataclass(frozen=True, eq=False)
class Delivery:
    """Hold one request with its tensors and the nodes that it goes to."""

    request: DeliverRequest
    tensors: Tensors
    nodes: Sequence[int]


@dataclass(frozen=True)
class Courier:
    """Send the requests of one run to phones and hand valid replies on. `on_reply(done, asked)` reports progress."""

    grid: Grid
    run: str
    rounds: Rounds
    masking: Masking | None
    """None: sums are plain, or there are none."""
    dropout: float = 0.0
    """Share of asked phones that may fail to answer."""
    grace: float = math.inf
    """Seconds that the others are waited for once all but `dropout` have answered; infinite: as long as `rounds` says.
    """
    on_reply: OnReply = lambda done, asked: None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    operator: Ed25519PrivateKey | None = None
    """Signs deliveries; None: nobody does."""
    activity: Activity = field(default_factory=Activity)
    """What is asked now, for monitoring."""

    def sum(
        self,
        round: int,
        kind: Any,
        spec: SumSpec,
        tensors: Tensors,
        nodes: Iterable[int],
        log: SumLog | None = None,
    ) -> tuple[NDArray[Any], Tally]:
        """Return the decoded sum [length] and the tally. A masked sum that is in progress in `log` goes on.

        Raises Lost when fewer phones answer than the sum needs, or when honest ones cannot have made it.
        """
        digest = digest_of(tensors)
        asked = {
            "run": self.run,
            "round": round,
            "request": self.request_id(spec.digest, digest),
            "kind": kind,
            "sum": SumFields.of(spec),
        }
        if self.masking is None:
            total, tally = self._plain(SumRequest(**asked), spec, tensors, list(nodes))
        else:
            terms = {"dropout": self.masking.dropout, "corrupted": self.masking.corrupted, "tensors": digest}
            total, tally = self._masked({**asked, **terms}, self.masking, tensors, list(nodes), log or SumLog())
        try:
            plausible.check(total, spec, tally.replies, asked_for(kind, tensors).signed)
        except PrivacyError as error:
            raise Lost("discarded", str(error)) from None
        return total, tally

    def _masked(
        self, asked: dict[str, Any], masking: Masking, tensors: Tensors, nodes: list[int], log: SumLog
    ) -> tuple[NDArray[Any], Tally]:
        """Ask for a masked sum, again while no vector was sent: from then on another try would be charged to phones."""
        tally = Tally.of(log.tally)

        def exchange(waiting: Mapping[int, Header], content: Content, take: Take, enough: int) -> dict[str, Any]:
            nonlocal tally
            tally += self._exchange("query.masked", waiting, content, take, enough, self.grace)
            return tally.as_dict()

        if not log.attempt:
            log.begin(masking.attempt(log.first), log.first, tally.as_dict())
        while True:
            request = MaskedRequest(**asked, attempt=log.attempt)
            try:
                total, tally.replies = masked_sum(request, tensors, nodes, exchange, log, masking.enrolled)
                break
            except Early:
                number = log.number + 1
                if number - log.first == self.rounds.attempts:
                    raise
                log.begin(masking.attempt(number), number, tally.as_dict())
        tally.asked = len(nodes)
        return total, tally

    def _plain(
        self, request: SumRequest, spec: SumSpec, tensors: Tensors, nodes: list[int]
    ) -> tuple[NDArray[Any], Tally]:
        aggregator, packed = PlainAggregator(spec), pack(request, tensors)

        def take(reply: Message, node: int, request: Header) -> None:
            header, values = unpack(reply.content, SumReply)
            check_answers(request, header)
            try:
                aggregator.add(values["values"])
            except PrivacyError as error:
                raise WireError("wrong_shape", str(error)) from None

        waiting = dict.fromkeys(nodes, request)
        enough = max(spec.min_cohort, spec.min_survivors)
        tally = self._exchange("query.sum", waiting, lambda node: packed, take, enough, self.grace)
        try:
            return aggregator.finish(), tally
        except PrivacyError as error:
            raise Lost("late", str(error)) from None

    def answers(self, round: int, spec: LocalSpec, nodes: Iterable[int], add: Callable[[Bits], None]) -> Tally:
        """Ask phones for their own answers and hand each to `add`, which raises PrivacyError on one that cannot be."""
        request = LocalRequest(run=self.run, round=round, request=self.request_id(spec.digest), **asdict(spec))
        packed, waiting = pack(request, {}), dict.fromkeys(nodes, request)

        def take(reply: Message, node: int, request: Header) -> None:
            header, tensors = unpack(reply.content, LocalReply)
            check_answers(request, header)
            try:
                add(tensors["answer"])
            except PrivacyError as error:
                raise WireError("wrong_shape", str(error)) from None

        return self._exchange("query.local", waiting, lambda node: packed, take, self._most(waiting), self.grace)

    def deliver(self, request: DeliverRequest, tensors: Tensors, nodes: Iterable[int]) -> tuple[dict[int, int], Tally]:
        """Send one delivery to all `nodes`. Returns the clusters that phones named, by node (mode `choose` alone)."""
        return self.deliver_each([Delivery(request, tensors, list(nodes))])

    def deliver_each(self, deliveries: Sequence[Delivery]) -> tuple[dict[int, int], Tally]:
        """Send several deliveries at the same time, each to its own nodes. Returns what `deliver` does."""
        named: dict[int, int] = {}

        def take(reply: Message, node: int, request: Header) -> None:
            header, _ = unpack(reply.content, DeliverReply)
            check_answers(request, header)
            if header.other_weights:
                raise WireError("wrong_weights", "the phone has another base model")
            if not header.accepted:
                raise WireError("wrong_digest", "the phone refused the delivery")
            if header.cluster is not None:
                named[node] = header.cluster

        packed = [pack(self._signed(one), one.tensors) for one in deliveries]
        contents = {node: content for one, content in zip(deliveries, packed, strict=True) for node in one.nodes}
        waiting = {node: one.request for one in deliveries for node in one.nodes}
        # A phone that comes late would do without its submodel until the next round: it is waited for much longer.
        grace = max(self.grace, self.rounds.deadline)
        return named, self._exchange("query.deliver", waiting, contents.__getitem__, take, self._most(waiting), grace)

    def _signed(self, one: Delivery) -> DeliverRequest:
        return one.request if self.operator is None else sign(one.request, one.tensors, self.operator)

    def _most(self, asked: Collection[int]) -> int:
        """Return how many replies are enough: all but the share `dropout`."""
        return len(asked) - math.ceil(self.dropout * len(asked))

    def request_id(self, *parts: str) -> str:
        """Return a request's id. A repeated question keeps its id, so that a phone answers it alike."""
        return hashlib.sha256("/".join((self.run, *parts)).encode()).hexdigest()

    def _exchange(
        self, kind: str, requests: Mapping[int, Header], content: Content, take: Take, enough: int, grace: float
    ) -> Tally:
        """Ask all nodes; ask those again that sent no valid reply, until all did, the attempts are spent, or `grace`
        seconds have passed since `enough` did.
        """
        waiting, tally, end = dict(requests), Tally(asked=len(requests)), math.inf
        step = _step(kind, requests)
        online = self.activity.now.online
        if online is None or step not in MASKED_STEPS[1:]:  # once a sum: the SuperLink lists all its phones
            online = len(list(self.grid.get_node_ids()))
        self.activity.ask(step, len(requests), online, self.rounds.attempts * self.rounds.deadline)

        def closing() -> float:
            return end

        for attempt in range(self.rounds.attempts):
            if not waiting or self.clock() >= end:
                break
            asked = self._push(kind, step, waiting, content, attempt, tally)
            tally.dropped += len(waiting) - len(asked)
            tally.messages[f"{step}/offline"] += len(waiting) - len(asked)
            for reply in self._replies(asked, closing):
                node = asked.pop(reply.metadata.reply_to_message_id, None)
                if node is None or node not in waiting:
                    tally.refused["replayed"] += 1
                    continue
                if reply.has_error():
                    tally.dropped += 1
                    tally.messages[f"{step}/{_failure(reply.error.code)}"] += 1
                    continue
                size = size_of(reply.content)
                tally.bytes_up += size
                tally.traffic[f"{step}/up"] += size
                try:
                    take(reply, node, waiting[node])
                except WireError as error:
                    tally.refused[error.reason] += 1
                    tally.messages[f"{step}/refused"] += 1
                    if error.reason != "wrong_weights":
                        continue
                    tally.others.append(node)  # to be asked no more
                else:
                    tally.replies += 1
                    tally.messages[f"{step}/ok"] += 1
                del waiting[node]
                if tally.asked - len(waiting) == enough:
                    end = self.clock() + grace
                self.activity.reply(tally.replies)
                self.on_reply(tally.replies, tally.asked)
            tally.dropped += len(asked)
            tally.messages[f"{step}/late"] += len(asked)
        tally.messages = +tally.messages  # without zeros
        tally.silent += waiting
        return tally

    def _push(
        self, kind: str, step: str, waiting: Mapping[int, Header], content: Content, attempt: int, tally: Tally
    ) -> dict[str, int]:
        """Push a message to each waiting node. Returns nodes by message id, without those that Flower did not take."""

        def messages() -> Iterator[Message]:
            for node in nodes:
                record = content(node)
                size = size_of(record)
                tally.bytes_down += size
                tally.traffic[f"{step}/down"] += size
                yield self.grid.create_message(record, kind, node, f"{waiting[node].group}/{attempt}")

        nodes = sorted(waiting)
        ids = self.grid.push_messages(list(messages()))
        return {message_id: node for message_id, node in zip(ids, nodes, strict=True) if message_id}

    def _replies(self, asked: dict[str, int], until: Callable[[], float]) -> Iterable[Message]:
        """Yield replies as they come, until all are there or the deadline is over; `until` may set an earlier one."""
        deadline = self.clock() + self.rounds.deadline
        open_ids = set(asked)
        while open_ids:
            came = 0
            for reply in self.grid.pull_messages(sorted(open_ids)):
                open_ids.discard(reply.metadata.reply_to_message_id)
                came += 1
                yield reply
            end = min(deadline, until())
            if not open_ids or self.clock() >= end:
                return
            if not came:
                self.sleep(min(self.rounds.poll, max(end - self.clock(), 0.0)))


def _step(kind: str, requests: Mapping[int, Header]) -> str:
    """Name the step that all requests of an exchange are of."""
    first = next(iter(requests.values()), None)
    return MASKED_STEPS[first.step] if isinstance(first, MaskedRequest) else kind.rpartition(".")[2]


def _failure(code: int) -> str:
    """Say what Flower's error in place of a reply means: the phone was gone, too late, or answered with an error."""
    return "offline" if code in _OFFLINE else "late" if code in _LATE else "declined"


def size_of(content: RecordDict) -> int:
    """Return the payload bytes of a message: tensors and header, without Flower's framing."""
    arrays = sum(len(a.data) for record in content.array_records.values() for a in record.values())
    entries = (v for record in content.config_records.values() for v in record.values())
    return arrays + sum(len(v if isinstance(v, bytes) else str(v)) for v in entries)
