"""The courier: good replies are added up once, all others are refused with their reason, and the round goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from fedcaptor.common.config import Faults, Rounds
from fedcaptor.common.errors import PrivacyError
from fedcaptor.common.messages import (
    DeliverReply,
    DeliverRequest,
    Header,
    SumFields,
    SumReply,
    SumRequest,
    digest_of,
)
from fedcaptor.common.privacy.sums import SumSpec, encode
from fedcaptor.common.wire import pack, unpack
from fedcaptor.server.collect import Courier, Tally
from fedcaptor.simulations.local_grid import FIRST_NODE, LocalGrid, VirtualClock

RUN, OTHER = "a" * 64, "b" * 64
PHONES = 24
SPEC = SumSpec("1-usage-0", 3, 2.0, 1024.0, 0.0, cohort=PHONES, min_survivors=20, min_cohort=20)
OWN = np.array([1.0, 0.5, 0.25])
Change = Callable[[SumReply], dict[str, Any]]


def phone(changes: dict[int, Change], seen: list[str] | None = None) -> Callable[[Message, Context], Message]:
    """Phones that add `OWN`; those in `changes` (by number) send a header with other values."""

    def app(message: Message, context: Context) -> Message:
        request, _ = unpack(message.content, SumRequest)
        if seen is not None:
            seen.append(request.request)
        reply = SumReply.to(request)
        change = changes.get(int(context.node_config["partition-id"]))
        if change is not None:
            reply = reply.model_copy(update=change(reply))
        values = encode(OWN, request.sum.spec(), np.random.default_rng(0))
        return Message(pack(reply, {"values": values}), reply_to=message)

    return app


def courier_of(
    grid: LocalGrid, clock: VirtualClock | None = None, grace: float = math.inf, dropout: float = 0.0, **rounds: Any
) -> Courier:
    clock = clock or VirtualClock()
    settings = Rounds(deadline=10, poll=1, **{"attempts": 1, **rounds})
    return Courier(grid, RUN, settings, None, dropout, grace, sleep=clock.sleep, clock=clock.time)


def asked(courier: Courier) -> tuple[np.ndarray, Tally]:
    return courier.sum(1, "usage", SPEC, {}, courier.grid.get_node_ids())


def test_all_phones_add_up() -> None:
    total, tally = asked(courier_of(LocalGrid(phone({}), PHONES)))
    np.testing.assert_allclose(total, PHONES * OWN)
    assert (tally.asked, tally.replies, tally.dropped, dict(tally.refused)) == (PHONES, PHONES, 0, {})
    assert tally.bytes_down > PHONES * 100
    assert tally.bytes_up > PHONES * 12


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"run": OTHER}, "wrong_run"),
        ({"round": 2}, "wrong_round"),
        ({"request": OTHER}, "replayed"),
        ({"kind": "scores"}, "wrong_kind"),
        ({"sum_digest": OTHER}, "wrong_digest"),
        ({"version": 1}, "wrong_version"),
    ],
)
def test_replies_to_something_else_are_refused(change: dict[str, Any], reason: str) -> None:
    total, tally = asked(courier_of(LocalGrid(phone({3: lambda _: change}), PHONES)))
    np.testing.assert_allclose(total, (PHONES - 1) * OWN)
    assert dict(tally.refused) == {reason: 1}
    assert tally.replies == PHONES - 1


def test_values_of_another_length_are_refused() -> None:
    def app(message: Message, context: Context) -> Message:
        request, _ = unpack(message.content, SumRequest)
        length = 4 if context.node_config["partition-id"] == 0 else 3
        return Message(pack(SumReply.to(request), {"values": np.ones(length, np.uint32)}), reply_to=message)

    total, tally = asked(courier_of(LocalGrid(app, PHONES)))
    np.testing.assert_allclose(total, (PHONES - 1) / SPEC.scale)
    assert dict(tally.refused) == {"wrong_shape": 1}


def test_a_phone_that_fails_once_is_asked_again_the_same_thing() -> None:
    seen: list[str] = []
    answer = phone({}, seen)
    failed: list[int] = []

    def app(message: Message, context: Context) -> Message:
        if context.node_id not in failed:
            failed.append(context.node_id)
            raise RuntimeError("busy")
        return answer(message, context)

    total, tally = asked(courier_of(LocalGrid(app, PHONES), attempts=2))
    np.testing.assert_allclose(total, PHONES * OWN)
    assert (tally.replies, tally.dropped) == (PHONES, PHONES)
    assert len(set(seen)) == 1


def test_enough_replies_end_the_phase_and_too_few_are_no_sum() -> None:
    seen: list[str] = []
    asked(courier_of(LocalGrid(phone({}, seen), PHONES), attempts=9))
    assert len(seen) == PHONES
    faulty = {number: lambda _: {"run": OTHER} for number in range(5)}
    with pytest.raises(PrivacyError, match="19 replies, at least 20 needed"):
        asked(courier_of(LocalGrid(phone(faulty), PHONES), attempts=3))


def test_late_phones_are_given_up_at_the_deadline() -> None:
    clock = VirtualClock()
    grid = LocalGrid(phone({}), PHONES, faults=Faults(stall=0.1, stall_seconds=99.0), seed=2, clock=clock.time)
    total, tally = asked(courier_of(grid, clock))
    assert clock.now == 10
    assert 0 < tally.dropped == PHONES - tally.replies
    np.testing.assert_allclose(total, tally.replies * OWN)


def test_phones_within_the_deadline_are_waited_for() -> None:
    clock = VirtualClock()
    grid = LocalGrid(phone({}), PHONES, faults=Faults(stall=0.5, stall_seconds=3.0), seed=1, clock=clock.time)
    _, tally = asked(courier_of(grid, clock))
    assert tally.replies == PHONES
    assert 3 <= clock.now < 10


@pytest.mark.parametrize(("stall", "seconds", "replies"), [(99.0, 2, 21), (1.0, 1, 24), (5.0, 2, 21)])
def test_others_are_waited_for_a_grace_period_once_enough_have_answered(
    stall: float, seconds: float, replies: int
) -> None:
    clock = VirtualClock()
    grid = LocalGrid(phone({}), PHONES, faults=Faults(stall=0.05, stall_seconds=stall), seed=4, clock=clock.time)
    _, tally = asked(courier_of(grid, clock, grace=2, attempts=3))
    assert (clock.now, tally.replies, tally.dropped) == (seconds, replies, PHONES - replies)


def test_a_phone_that_fails_is_asked_again_within_the_grace_period() -> None:
    answer, failed = phone({}), []

    def app(message: Message, context: Context) -> Message:
        if context.node_id == FIRST_NODE and len(failed) < 2:
            failed.append(context.node_id)
            raise RuntimeError("busy")
        return answer(message, context)

    _, tally = asked(courier_of(LocalGrid(app, PHONES), grace=2, attempts=3))
    assert (tally.replies, tally.dropped) == (PHONES, 2)


def test_a_delivery_is_waited_for_until_the_deadline_but_not_again_once_enough_have_it() -> None:
    def app(message: Message, context: Context) -> Message:
        request, _ = unpack(message.content, DeliverRequest)
        return Message(
            pack(DeliverReply(run=request.run, round=1, request=request.request, accepted=True), {}), reply_to=message
        )

    def silent_first(node: int, *message: Any) -> tuple[str, np.random.Generator]:
        return "silence" if node == FIRST_NODE else "ok", np.random.default_rng(0)

    request = DeliverRequest(run=RUN, round=1, request=OTHER, mode="plan", weights="e" * 64, clusters=(), digests=())
    for dropout, waited in ((0.5, 10), (0.0, 30)):
        clock = VirtualClock()
        grid = LocalGrid(app, PHONES, clock=clock.time)
        grid._fault = silent_first  # type: ignore[method-assign]
        _, tally = courier_of(grid, clock, grace=2, dropout=dropout, attempts=3).deliver(
            request, {"centroids": np.eye(2, dtype=np.float32)}, grid.get_node_ids()
        )
        assert (clock.now, tally.replies) == (waited, PHONES - 1)


@dataclass
class Meddling:
    """A grid that hands every reply on as `change` makes it: twice, under another id, or none at all."""

    inner: LocalGrid
    change: Callable[[Message], list[Message]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for message in self.inner.pull_messages(message_ids):
            yield from self.change(message)


def renamed(message: Message) -> Message:
    message.metadata.__dict__["_reply_to_message_id"] = "f" * 32
    return message


def test_double_and_foreign_replies_count_once_or_never() -> None:
    doubled = Meddling(LocalGrid(phone({}), PHONES), lambda message: [message, message])
    total, tally = asked(courier_of(doubled))  # type: ignore[arg-type]
    np.testing.assert_allclose(total, PHONES * OWN)
    assert dict(tally.refused) == {"replayed": PHONES}

    def one_foreign(message: Message) -> list[Message]:
        return [renamed(message) if message.metadata.src_node_id == FIRST_NODE else message]

    total, tally = asked(courier_of(Meddling(LocalGrid(phone({}), PHONES), one_foreign)))  # type: ignore[arg-type]
    np.testing.assert_allclose(total, (PHONES - 1) * OWN)
    assert dict(tally.refused) == {"replayed": 1}
    assert tally.dropped == 1


def test_a_message_that_flower_does_not_take_is_a_dropped_phone() -> None:
    grid = LocalGrid(phone({}), PHONES)
    push = grid.push_messages
    grid.push_messages = lambda messages: [None, *push(list(messages)[1:])]  # type: ignore[assignment,list-item,method-assign]
    total, tally = asked(courier_of(grid))
    assert (tally.replies, tally.dropped) == (PHONES - 1, 1)
    np.testing.assert_allclose(total, (PHONES - 1) * OWN)


def test_malformed_replies_never_ends_a_round() -> None:
    """Every kind of damage: nothing but whole replies is added up, and the tally has them all."""
    grid = LocalGrid(phone({}), 200, faults=Faults(dropout=0.1, malformed=0.4), seed=2)
    total, tally = courier_of(grid).sum(1, "usage", replace(SPEC, cohort=200), {}, grid.get_node_ids())
    np.testing.assert_allclose(total, tally.replies * OWN)
    refused = sum(tally.refused.values())
    assert tally.replies + refused + tally.dropped == 200
    assert refused > 40
    assert len(tally.refused) >= 3


@pytest.mark.parametrize(
    ("faults", "result"),
    [({"dropout": 1.0}, "offline"), ({"silence": 1.0}, "late"), ({"malformed": 1.0}, "refused"), ({}, "ok")],
)
def test_each_message_has_one_result(faults: dict[str, float], result: str) -> None:
    clock = VirtualClock()
    grid = LocalGrid(phone({}), PHONES, faults=Faults(**faults), clock=clock.time, sleep=clock.sleep)
    courier = courier_of(grid, clock, attempts=2)
    courier.activity.begin(1, "usage-0")
    node = {"run": RUN, "round": 1, "request": "c" * 64, "kind": "usage", "sum": SumFields.of(SPEC)}
    waiting = dict.fromkeys(grid.get_node_ids(), SumRequest(**node))

    def take(reply: Message, node: int, request: Header) -> None:
        unpack(reply.content, SumReply)

    tally = courier._exchange("query.sum", waiting, lambda node: pack(waiting[node], {}), take, PHONES, math.inf)
    sent = PHONES * (1 if result == "ok" else 2)
    assert tally.messages == {f"sum/{result}": sent}
    assert tally.traffic["sum/down"] == tally.bytes_down > 0
    assert tally.traffic["sum/up"] == tally.bytes_up
    now = courier.activity.now
    assert (now.step, now.asked, now.online, now.replied) == ("sum", PHONES, PHONES, tally.replies)
    assert now.name == "usage-0 sum"


def test_a_phone_that_answers_with_an_error_declines() -> None:
    def declines(message: Message, context: Context) -> Message:
        raise PrivacyError("no")

    with pytest.raises(PrivacyError):
        asked(courier_of(LocalGrid(declines, PHONES)))
    grid = LocalGrid(declines, PHONES)
    courier = courier_of(grid)
    request = DeliverRequest(run=RUN, round=1, request="c" * 64, mode="plan", weights="d" * 64, clusters=(), digests=())
    _, tally = courier.deliver(request, {"centroids": np.eye(2, dtype=np.float32)}, grid.get_node_ids())
    assert tally.messages == {"deliver/declined": PHONES}
    assert Tally.of(tally.as_dict()).messages == tally.messages


def test_deliveries_are_confirmed_or_refused() -> None:
    """Phone 0 sends nothing readable, phone 1 refuses, the others name their clusters."""

    def app(message: Message, context: Context) -> Message:
        request, _ = unpack(message.content, DeliverRequest)
        number = int(context.node_config["partition-id"])
        reply = DeliverReply(
            run=request.run, round=1, request=request.request, accepted=number != 1, cluster=number % 2
        )
        return Message(pack(reply, {}) if number else RecordDict(), reply_to=message)

    courier = courier_of(LocalGrid(app, 4))
    request = DeliverRequest(run=RUN, round=1, request=OTHER, mode="choose", weights="e" * 64, clusters=(), digests=())
    named, tally = courier.deliver(request, {"centroids": np.eye(2, dtype=np.float32)}, courier.grid.get_node_ids())
    assert named == {FIRST_NODE + 2: 0, FIRST_NODE + 3: 1}
    assert (tally.asked, tally.replies) == (4, 2)
    assert dict(tally.refused) == {"malformed": 1, "wrong_digest": 1}


def test_a_request_is_named_by_what_it_asks() -> None:
    courier = courier_of(LocalGrid(phone({}), 1))
    x = {"centroids": np.eye(2, dtype=np.float32)}
    assert digest_of(x) == digest_of({"centroids": np.eye(2, dtype=np.float32)})
    assert digest_of(x) != digest_of({"centroids": 2 * np.eye(2, dtype=np.float32)})
    assert digest_of(x) != digest_of({"pool": np.eye(2, dtype=np.float32)})
    assert digest_of(x) != digest_of({"centroids": np.eye(2, dtype=np.float32).reshape(4, 1)})
    assert courier.request_id("1") != courier.request_id("2")


def test_a_sum_that_honest_phones_cannot_have_made_is_discarded() -> None:
    """Without noise 24 vectors of norm 2 reach 48; one phone adds 1,000 by itself."""

    def app(message: Message, context: Context) -> Message:
        request, _ = unpack(message.content, SumRequest)
        first = context.node_config["partition-id"] == 0
        values = np.full(3, 1000 * 1024 if first else 0, np.uint32)
        return Message(pack(SumReply.to(request), {"values": values}), reply_to=message)

    with pytest.raises(PrivacyError, match=r"1-usage-0: norm 1732\.05 is beyond 48"):
        asked(courier_of(LocalGrid(app, PHONES)))
