"""Replies leave at a fixed time, whatever the work took."""

from __future__ import annotations

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
def test_all_leave_at_the_same_time(work: float, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    timing = ReplyTiming(SECONDS, clock, clock.sleep)

    def answer() -> str:
        clock.sleep(work)
        return "answer"

    assert timing.reply(answer) == "answer"
    assert clock.now == 1000 + SECONDS
    assert not caplog.records


def test_what_is_raised_leaves_at_that_time_too(clock: Clock) -> None:
    def fail() -> None:
        clock.sleep(7)
        raise ValueError("declined")

    with pytest.raises(ValueError, match="declined"):
        ReplyTiming(SECONDS, clock, clock.sleep).reply(fail)
    assert clock.now == 1000 + SECONDS


def test_an_answer_that_takes_longer_is_logged_and_the_same(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def answer() -> str:
        clock.sleep(SECONDS + 1)
        return "answer"

    assert ReplyTiming(SECONDS, clock, clock.sleep).reply(answer) == "answer"
    assert clock.now == 1000 + SECONDS + 1
    assert len(caplog.records) == 1


def test_zero_seconds_wait_for_nothing(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    assert ReplyTiming(0.0, clock, clock.sleep).reply(lambda: 1) == 1
    assert (clock.now, caplog.records) == (1000, [])


def test_an_answer_may_wait_for_a_part_of_the_time_alone() -> None:
    assert 0 < ReplyTiming(SECONDS).patience < SECONDS
    assert ReplyTiming(0.0).patience == 0
