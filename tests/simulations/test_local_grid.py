"""LocalGrid: real serialisation, seeded faults, memory that does not grow with the phones."""

import tracemalloc

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedcaptor.common.config import Faults, load_config
from fedcaptor.common.errors import ConfigError, WireError
from fedcaptor.common.messages import SumFields, SumReply, SumRequest
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.common.wire import pack, unpack
from fedcaptor.simulations.local_grid import FIRST_NODE, LocalGrid

SPEC = SumSpec("usage", 8, clip=2.0, scale=1024.0, noise_multiplier=1.0, cohort=50, min_survivors=20, min_cohort=20)
REQUEST = SumRequest(run="a" * 64, round=0, request="b" * 32, kind="usage", sum=SumFields.of(SPEC))


def app(message, context):
    request, _ = unpack(message.content, SumRequest)
    values = np.full(8, context.node_config["partition-id"], dtype=np.uint32)
    return Message(pack(SumReply.to(request), {"values": values}), reply_to=message)


def requests(grid, nodes=None, group="0"):
    content = pack(REQUEST, {"centroids": np.zeros(1000, dtype=np.float32)})
    return (grid.create_message(content, "query.usage", node, group) for node in nodes or grid.get_node_ids())


def test_each_phone_answers_for_its_partition():
    grid = LocalGrid(app, 5)
    ids = grid.push_messages(requests(grid))
    replies = list(grid.pull_messages(ids))
    assert [m.metadata.reply_to_message_id for m in replies] == ids
    for partition, message in enumerate(replies):
        assert message.metadata.src_node_id == FIRST_NODE + partition
        assert unpack(message.content, SumReply)[1]["values"][0] == partition
    assert list(grid.pull_messages(ids)) == []
    assert grid.bytes_down > 5 * 4000
    assert 0 < grid.bytes_up < grid.bytes_down


def test_nothing_is_shared_between_the_sides():
    seen = []

    def keep(message, context):
        seen.append(message.content)
        context.state["c"] = ConfigRecord({"n": 1})
        return Message(message.content, reply_to=message)

    grid = LocalGrid(keep, 1, run_config={"a": 1})
    content = RecordDict({"c": ConfigRecord({"n": 1})})
    ids = grid.push_messages([grid.create_message(content, "query", FIRST_NODE, "0")])
    content["c"]["n"] = 2
    (reply,) = grid.pull_messages(ids)
    assert seen[0]["c"]["n"] == 1
    assert reply.content is not seen[0]
    assert reply.content == seen[0]


def test_failures_of_a_phone_are_error_replies():
    def broken(message, context):
        raise RuntimeError("private text")

    grid = LocalGrid(broken, 1)
    raised, gone = grid.send_and_receive(requests(grid, [FIRST_NODE, 7]))
    assert raised.error.code == 2
    assert "private" not in raised.error.reason
    assert gone.error.code == 5


def outcome(seed, nodes=400):
    grid = LocalGrid(app, nodes, faults=Faults(dropout=0.2, silence=0.2, malformed=0.2), seed=seed)
    fates = {"good": set(), "error": set(), "refused": set()}
    for message in grid.send_and_receive(requests(grid)):
        node = message.metadata.src_node_id
        if message.has_error():
            fates["error"].add(node)
            continue
        try:
            unpack(message.content, SumReply)
            fates["good"].add(node)
        except WireError:
            fates["refused"].add(node)
    fates["silent"] = set(grid.get_node_ids()) - set.union(*fates.values())
    return fates


@pytest.mark.slow
def test_faults_are_seeded_come_at_their_rates_and_all_malformed_replies_are_refused():
    first = outcome(1)
    assert first == outcome(1)
    assert first != outcome(2)
    for name, share in {"good": 0.4, "error": 0.2, "refused": 0.2, "silent": 0.2}.items():
        assert abs(len(first[name]) - share * 400) < 5 * np.sqrt(400 * share * (1 - share))


def test_stalled_replies_come_late():
    now = [0.0]
    faults = Faults(stall=1.0, stall_seconds=10.0)
    grid = LocalGrid(app, 2, faults=faults, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    ids = grid.push_messages(requests(grid))
    assert list(grid.pull_messages(ids)) == []
    now[0] = 10.0
    assert len(list(grid.pull_messages(ids))) == 2
    assert list(grid.send_and_receive(requests(grid), timeout=5.0)) == []
    assert now[0] == 15.0
    assert len(list(grid.send_and_receive(requests(grid)))) == 2


def test_a_caller_may_stop_early():
    called = []

    def counted(message, context):
        called.append(context.node_id)
        return app(message, context)

    grid = LocalGrid(counted, 50)
    replies = grid.pull_messages(grid.push_messages(requests(grid)))
    for _ in range(3):
        next(replies)
    assert len(called) == 3


def peak(nodes):
    tracemalloc.start()
    try:
        grid = LocalGrid(app, nodes)
        content = pack(REQUEST, {"centroids": np.zeros(50_000, dtype=np.float32)})
        messages = (grid.create_message(content, "query.usage", n, "0") for n in grid.get_node_ids())
        assert sum(1 for _ in grid.send_and_receive(messages)) == nodes
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_contents_of_all_phones():
    peak(2)
    assert peak(220) - peak(20) < 200 * 2_000  # bytes a phone; its request alone is 200,000


@pytest.mark.parametrize("wrong", [["dropout=-0.1"], ["stall=nan"], ["dropout=0.6", "malformed=0.6"]])
def test_impossible_faults_are_refused(wrong):
    with pytest.raises(ConfigError):
        load_config(None, [f"faults.{fault}" for fault in wrong])
