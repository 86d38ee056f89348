"""One private sum over the grid: push, pull until a deadline, check each reply, keep one accumulator."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from flwr.app import Message, RecordDict
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
from fedcaptor.common.wire import pack, unpack
from fedcaptor.server import plausible
from fedcaptor.server.masked import Early, Lost, Masking, Take, masked_sum
from fedcaptor.server.plain_sum import PlainAggregator

OnReply = Callable[[int, int], None]
Content = Callable[[int], RecordDict]


@dataclass
class Tally:
    """What became of the messages of one phase."""

    asked: int = 0
    replies: int = 0
    dropped: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Tally) -> Tally:
        return Tally(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def as_dict(self) -> dict[str, Any]:
        return {
            "asked": self.asked,
            "replies": self.replies,
            "dropped": self.dropped,
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
            "refused": dict(sorted(self.refused.items())),
        }


@dataclass(frozen=True, eq=False)
class Parcel:
    """One request with its tensors, and the nodes that it is for."""

    request: Header
    tensors: Tensors
    nodes: Sequence[int]


@dataclass(frozen=True)
class Courier:
    """Sends requests of one run and hands valid replies on. `on_reply(done, asked)` is for progress."""

    grid: Grid
    run: str
    rounds: Rounds
    masking: Masking | None
    """None: sums are plain, or there are none."""
    on_reply: OnReply = lambda done, asked: None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def sum(
        self, round: int, kind: Any, spec: SumSpec, tensors: Tensors, nodes: Iterable[int]
    ) -> tuple[NDArray[Any], Tally]:
        """The decoded sum [length]. Raises Lost when fewer phones answer than the sum needs, or when honest ones cannot
        have made it.
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
            total, tally = self._masked({**asked, **terms}, self.masking, tensors, list(nodes))
        try:
            plausible.check(total, spec, tally.replies)
        except PrivacyError as error:
            raise Lost("discarded", str(error)) from None
        return total, tally

    def _masked(
        self, asked: dict[str, Any], masking: Masking, tensors: Tensors, nodes: list[int]
    ) -> tuple[NDArray[Any], Tally]:
        """Tried anew while that is free: a sum in which vectors were sent would be charged to the phones again."""
        tally = Tally()

        def exchange(waiting: Mapping[int, Header], content: Content, take: Take) -> None:
            nonlocal tally
            tally += self._exchange("query.masked", waiting, content, take, enough=len(waiting))

        number = 0
        while True:
            request = MaskedRequest(**asked, attempt=masking.attempt(number))
            try:
                total, tally.replies = masked_sum(request, tensors, nodes, exchange)
                break
            except Early:
                number += 1
                if number == self.rounds.attempts:
                    raise
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
        tally = self._exchange("query.sum", waiting, lambda node: packed, take, enough=spec.cohort)
        try:
            return aggregator.finish(), tally
        except PrivacyError as error:
            raise Lost("late", str(error)) from None

    def answers(self, round: int, spec: LocalSpec, nodes: Iterable[int], add: Callable[[Bits], None]) -> Tally:
        """Hand every phone's own answer to `add`, which raises PrivacyError on one that no phone can have drawn."""
        request = LocalRequest(run=self.run, round=round, request=self.request_id(spec.digest), **asdict(spec))
        packed, waiting = pack(request, {}), dict.fromkeys(nodes, request)

        def take(reply: Message, node: int, request: Header) -> None:
            header, tensors = unpack(reply.content, LocalReply)
            check_answers(request, header)
            try:
                add(tensors["answer"])
            except PrivacyError as error:
                raise WireError("wrong_shape", str(error)) from None

        return self._exchange("query.local", waiting, lambda node: packed, take, enough=len(waiting))

    def deliver(self, request: DeliverRequest, tensors: Tensors, nodes: Iterable[int]) -> tuple[dict[int, int], Tally]:
        """Clusters that phones named, by node (mode `choose` alone), and how the delivery went."""
        return self.deliver_each([Parcel(request, tensors, list(nodes))])

    def deliver_each(self, parcels: Sequence[Parcel]) -> tuple[dict[int, int], Tally]:
        """`deliver` with other contents for other nodes, all at the same time."""
        named: dict[int, int] = {}

        def take(reply: Message, node: int, request: Header) -> None:
            header, _ = unpack(reply.content, DeliverReply)
            check_answers(request, header)
            if not header.accepted:
                raise WireError("wrong_digest", "the phone refused the delivery")
            if header.cluster is not None:
                named[node] = header.cluster

        packed = [pack(parcel.request, parcel.tensors) for parcel in parcels]
        contents = {node: content for parcel, content in zip(parcels, packed, strict=True) for node in parcel.nodes}
        waiting = {node: parcel.request for parcel in parcels for node in parcel.nodes}
        return named, self._exchange("query.deliver", waiting, contents.__getitem__, take, enough=len(waiting))

    def request_id(self, *parts: str) -> str:
        """A request's id: the same for the same question, so that a phone that is asked again answers alike."""
        return hashlib.sha256("/".join((self.run, *parts)).encode()).hexdigest()

    def _exchange(self, kind: str, requests: Mapping[int, Header], content: Content, take: Take, enough: int) -> Tally:
        """Ask all nodes, then those again that did not answer well, until enough did or the attempts are spent."""
        waiting, tally = dict(requests), Tally(asked=len(requests))
        for attempt in range(self.rounds.attempts):
            if not waiting or tally.replies >= enough:
                break
            asked = self._push(kind, waiting, content, attempt, tally)
            tally.dropped += len(waiting) - len(asked)
            for reply in self._replies(asked):
                node = asked.pop(reply.metadata.reply_to_message_id, None)
                if node is None or node not in waiting:
                    tally.refused["replayed"] += 1
                    continue
                if reply.has_error():
                    tally.dropped += 1
                    continue
                tally.bytes_up += size_of(reply.content)
                try:
                    take(reply, node, waiting[node])
                except WireError as error:
                    tally.refused[error.reason] += 1
                    continue
                del waiting[node]
                tally.replies += 1
                self.on_reply(tally.replies, tally.asked)
            tally.dropped += len(asked)
        return tally

    def _push(
        self, kind: str, waiting: Mapping[int, Header], content: Content, attempt: int, tally: Tally
    ) -> dict[str, int]:
        """The waiting nodes by message, those whose message Flower did not take (its id is None) left out."""

        def messages() -> Iterator[Message]:
            for node in nodes:
                record = content(node)
                tally.bytes_down += size_of(record)
                yield self.grid.create_message(record, kind, node, f"{waiting[node].group}/{attempt}")

        nodes = sorted(waiting)
        ids = self.grid.push_messages(list(messages()))
        return {message_id: node for message_id, node in zip(ids, nodes, strict=True) if message_id}

    def _replies(self, asked: dict[str, int]) -> Iterable[Message]:
        """Replies as they come, until all are there or the deadline is over."""
        end = self.clock() + self.rounds.deadline
        open_ids = set(asked)
        while open_ids:
            came = 0
            for reply in self.grid.pull_messages(sorted(open_ids)):
                open_ids.discard(reply.metadata.reply_to_message_id)
                came += 1
                yield reply
            if not open_ids or self.clock() >= end:
                return
            if not came:
                self.sleep(min(self.rounds.poll, max(end - self.clock(), 0.0)))


def size_of(content: RecordDict) -> int:
    """Payload bytes of a message: array data and texts, without Flower's framing."""
    arrays = sum(len(a.data) for record in content.array_records.values() for a in record.values())
    texts = sum(len(str(v)) for record in content.config_records.values() for v in record.values())
    return arrays + texts
