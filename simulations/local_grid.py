"""Flower's Grid inside one process: every message becomes bytes and is read back, both ways, and phones may fail.

Memory does not grow with the number of phones: node ids are a range, equal contents are kept once, and a phone's
context lives only while its message is answered, which happens when the reply is pulled.
"""

import hashlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, Metadata, RecordDict
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from safetensors.numpy import load, save

from fedcaptor.common.config import Faults
from fedcaptor.common.errors import ConfigError

FIRST_NODE = 1001
SERVER_NODE = 1
DEFAULT_TTL = 3600.0

App = Callable[[Message, Context], Message]
Value = str | int | float | bool


def fault_of(faults: Faults, seed: int, node: int, message: bytes) -> tuple[str, np.random.Generator]:
    """The fault of a message to `node`, a key of `[faults]` or `ok`, and a generator for a malformed reply.

    It depends on `seed`, the node and the `message` alone, so a run that is replayed fails alike.
    """
    digest = hashlib.sha256(f"{seed}/{node}/".encode() + message).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    point, reached = rng.random(), 0.0
    for name in ("dropout", "silence", "stall", "malformed"):
        reached += getattr(faults, name)
        if point < reached:
            return name, rng
    return "ok", rng


@dataclass(frozen=True)
class _Sent:
    metadata: bytes
    content: bytes  # digest
    node: int
    due: float


def malformed(content: RecordDict, rng: np.random.Generator) -> RecordDict:
    """The reply `content` as a broken or malicious phone would send it, with one of five defects drawn from `rng`."""
    kind = int(rng.integers(5))
    noise = rng.bytes(64)
    if kind == 0:
        return RecordDict()
    out = RecordDict()
    for name, record in content.items():
        if kind == 1 and isinstance(record, ConfigRecord):
            out[name] = ConfigRecord({key: noise.hex() for key in record})
        elif kind in (2, 3) and isinstance(record, ConfigRecord):
            out[name] = ConfigRecord(
                {k: _damaged(v, kind == 2) if isinstance(v, bytes) else v for k, v in record.items()}
            )
        elif kind == 2 and isinstance(record, ArrayRecord):
            cut = {k: Array(a.dtype, tuple(a.shape), a.stype, a.data[: len(a.data) // 2]) for k, a in record.items()}
            out[name] = ArrayRecord({**cut, "extra": Array("float32", (16,), "numpy.ndarray", noise)})
        elif kind == 3 and isinstance(record, ArrayRecord):
            huge = {k: Array(a.dtype, (1 << 30, 1 << 30), a.stype, a.data) for k, a in record.items()}
            out[name] = ArrayRecord({**huge, "extra": Array("float32", (1 << 30,), "numpy.ndarray", noise)})
        else:
            out[name] = record
    if kind == 4:
        out["extra"] = ArrayRecord({"x": Array("object", (1,), "numpy.ndarray", noise)})
    return out


def _damaged(tensors: bytes, more: bool) -> bytes:
    """Tensors in the bytes of safetensors with one `more` than there should be, or all of another type."""
    found = load(tensors)
    return save({**found, "extra": np.zeros(16)} if more else {k: v.astype(np.int16) for k, v in found.items()})


def _to_bytes(message: Message) -> bytes:
    return bytes(message_to_proto(message).SerializeToString())


class LocalGrid(Grid):
    """A grid of `nodes` phones with ids from 1001; `app` answers with a Context whose node_config has `partition-id`.

    Pulling yields replies one by one as phones answer: a caller that stops early leaves the rest unanswered. `faults`
    are the shares of messages that go wrong, at most one way each; `seed` draws which.
    """

    def __init__(
        self,
        app: App,
        nodes: int,
        *,
        faults: Faults | None = None,
        seed: int = 0,
        run_config: Mapping[str, Value] | None = None,
        node_config: Mapping[str, Value] | None = None,
        run_id: int = 1,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if nodes < 1:
            raise ConfigError(f"grid: nodes {nodes} must be at least 1")
        self._app, self._ids = app, range(FIRST_NODE, FIRST_NODE + nodes)
        self._faults, self._seed = faults or Faults(), seed
        self._run_config, self._node_config = dict(run_config or {}), dict(node_config or {})
        self._run = Run.create_empty(run_id)
        self._clock, self._sleep = clock, sleep
        self._workers = workers
        self._sent: dict[str, _Sent] = {}
        self._contents: dict[bytes, bytes] = {}
        self._uses: Counter[bytes] = Counter()
        self._count = 0
        self.bytes_down = 0
        self.bytes_up = 0

    def set_run(self, run: Run) -> None:
        """Use another run's identity."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message of this run; needs no task identity in the process."""
        metadata = Metadata(
            run_id=self._run.run_id,
            message_id="",
            src_node_id=SERVER_NODE,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=ttl or DEFAULT_TTL,
            message_type=message_type,
        )
        return make_message(metadata, content)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of all phones, in the order of their partitions."""
        return self._ids

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take the messages as bytes; phones answer when the replies are pulled. Returns the messages' ids."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Replies to those of `message_ids` that are answered by now, one by one, each once."""
        ready = (i for i in list(message_ids) if i in self._sent and self._sent[i].due <= self._clock())
        if self._workers == 1:
            yield from (self._received(self._answer(*self._take(i))) for i in ready)
            return
        with ThreadPoolExecutor(self._workers) as phones:
            underway: deque[Future[bytes]] = deque()
            try:
                for message_id in ready:
                    underway.append(phones.submit(self._answer, *self._take(message_id)))
                    if len(underway) > self._workers:
                        yield self._received(underway.popleft().result())
                while underway:
                    yield self._received(underway.popleft().result())
            finally:
                for answer in underway:
                    answer.cancel()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Push now; then yield replies until all that can come have come or `timeout` seconds are over."""
        ids = self.push_messages(messages)
        return self._wait(ids, None if timeout is None else self._clock() + timeout)

    def _wait(self, ids: list[str], end: float | None) -> Iterator[Message]:
        while True:
            for message_id in ids:
                if end is not None and self._clock() >= end:
                    return
                yield from self.pull_messages([message_id])
            ids = [i for i in ids if i in self._sent and self._sent[i].due < math.inf]
            if not ids:
                return
            pause = max(min(self._sent[i].due for i in ids) - self._clock(), 0.0)
            self._sleep(pause if end is None else min(pause, max(end - self._clock(), 0.0)))

    def _push(self, message: Message) -> str:
        self._count += 1
        message_id = f"{self._run.run_id:x}-{self._count:012x}"
        message.metadata.__dict__["_message_id"] = message_id
        proto = message_to_proto(message)
        content = proto.content.SerializeToString(deterministic=True)
        digest = hashlib.sha256(content).digest()
        self._contents.setdefault(digest, content)
        self._uses[digest] += 1
        self.bytes_down += proto.ByteSize()
        node = message.metadata.dst_node_id
        fault = self._fault(node, message.metadata, digest)[0]
        delay = {"silence": math.inf, "stall": self._faults.stall_seconds}.get(fault, 0.0)
        self._sent[message_id] = _Sent(proto.metadata.SerializeToString(), digest, node, self._clock() + delay)
        return message_id

    def _fault(self, node: int, metadata: Metadata, digest: bytes) -> tuple[str, np.random.Generator]:
        message = f"{metadata.group_id}/{metadata.message_type}/".encode() + digest
        return fault_of(self._faults, self._seed, node, message)

    def _take(self, message_id: str) -> tuple[str, _Sent, Message]:
        """A message that is about to be answered, with its content; the grid forgets it."""
        sent = self._sent.pop(message_id)
        proto = ProtoMessage()
        proto.metadata.ParseFromString(sent.metadata)
        proto.content.ParseFromString(self._contents[sent.content])
        proto.content.SetInParent()
        self._uses[sent.content] -= 1
        if self._uses[sent.content] == 0:
            del self._uses[sent.content], self._contents[sent.content]
        return message_id, sent, message_from_proto(proto)

    def _received(self, raw: bytes) -> Message:
        self.bytes_up += len(raw)
        return message_from_proto(ProtoMessage.FromString(raw))

    def _answer(self, message_id: str, sent: _Sent, request: Message) -> bytes:
        """The phone's reply as bytes; with several workers, phones answer at the same time."""
        fault, rng = self._fault(sent.node, request.metadata, sent.content)
        if fault == "dropout" or sent.node not in self._ids:
            reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, "the phone is gone"), reply_to=request)
        else:
            reply = self._call(request, sent.node)
            if fault == "malformed" and reply.has_content():
                reply.content = malformed(reply.content, rng)
        reply.metadata.__dict__["_message_id"] = f"{message_id}-r"
        return _to_bytes(reply)

    def _call(self, request: Message, node: int) -> Message:
        partition = {"partition-id": node - FIRST_NODE, "num-partitions": len(self._ids)}
        context = Context(
            self._run.run_id, node, {**self._node_config, **partition}, RecordDict(), dict(self._run_config)
        )
        try:
            return self._app(request, context)
        except Exception as error:  # as Flower does: a phone's failure is an error reply, never the server's
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, type(error).__name__), reply_to=request)


class VirtualClock:
    """Time that passes only while somebody waits: silent phones cost a simulation nothing."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
