"""Replies leave at a fixed time whatever the work took; work that takes longer changes nothing of them."""

from __future__ import annotations

import logging
import threading

import pytest

from fedcaptor.client.reply_timing import ReplyTiming

SECONDS = 60.0


class Clock:
    """Time that passes while somebody works or sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("work", [0.0, 0.5, 59.0])
@pytest.mark.parametrize("rest", [0.0, 0.5])
def test_all_leave_at_the_same_time(work: float, rest: float, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    timing = ReplyTiming(SECONDS, clock, clock.sleep)

    def answer() -> str:
        clock.sleep(work)
        return "answer"

    assert timing.reply(answer, lambda: clock.sleep(rest)) == "answer"
    assert clock.now == 1000 + SECONDS
    assert not caplog.records


def test_what_is_raised_leaves_at_that_time_too(clock: Clock) -> None:
    def fail() -> None:
        clock.sleep(7)
        raise ValueError("declined")

    with pytest.raises(ValueError, match="declined"):
        ReplyTiming(SECONDS, clock, clock.sleep).reply(fail, lambda: pytest.fail("nothing to do the rest for"))
    assert clock.now == 1000 + SECONDS


def test_what_the_rest_raises_stays_here(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("the disk is full")

    assert ReplyTiming(SECONDS, clock, clock.sleep).reply(lambda: 1, fail) == 1
    assert clock.now == 1000 + SECONDS
    assert "the disk is full" in caplog.text
    with pytest.raises(OSError, match="disk"):
        ReplyTiming().reply(lambda: 1, fail)


def test_a_rest_that_takes_longer_is_logged_and_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """It ends only after the reply is there, so a reply that waited for it would never come."""
    replied, ended = threading.Event(), threading.Event()

    def rest() -> None:
        replied.wait()
        ended.set()

    with caplog.at_level(logging.WARNING):
        assert ReplyTiming(0.02).reply(lambda: "answer", rest) == "answer"
    assert not ended.is_set()
    assert "takes longer than delivery.answer_seconds = 0.02: raise it" in caplog.text
    replied.set()
    assert ended.wait(10)


def test_an_answer_that_takes_longer_is_logged_and_the_same(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def answer() -> str:
        clock.sleep(SECONDS + 1)
        return "answer"

    assert ReplyTiming(SECONDS, clock, clock.sleep).reply(answer) == "answer"
    assert clock.now == 1000 + SECONDS + 1
    assert len(caplog.records) == 1


def test_zero_seconds_wait_for_nothing(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []
    assert ReplyTiming(0.0, clock, clock.sleep).reply(lambda: 1, lambda: done.append(threading.get_ident())) == 1
    assert done == [threading.get_ident()]
    assert (clock.now, caplog.records) == (1000, [])
