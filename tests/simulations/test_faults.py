"""Faulty phones under the server's courier: late answers are waited for, or lost and asked again; sums go on."""

import numpy as np
import pytest
from flwr.app import Message

from fedcaptor.common.config import Faults, Rounds, load_config
from fedcaptor.common.errors import ConfigError
from fedcaptor.common.messages import SumReply, SumRequest
from fedcaptor.common.privacy.sums import SumSpec, encode
from fedcaptor.common.wire import pack, unpack
from fedcaptor.server.collect import Courier
from fedcaptor.simulations.local_grid import LocalGrid, VirtualClock

PHONES = 60
SPEC = SumSpec("usage", 4, clip=2.0, scale=1024.0, noise_multiplier=0.0, cohort=PHONES, min_survivors=20, min_cohort=20)


def app(message, context):
    request, _ = unpack(message.content, SumRequest)
    values = encode(np.eye(4)[0], SPEC, np.random.default_rng(0))
    return Message(pack(SumReply.to(request), {"values": values}), reply_to=message)


def summed(attempts=1, **faults):
    """The sum, its tally and the seconds that the server waited."""
    clock = VirtualClock()
    grid = LocalGrid(app, PHONES, faults=Faults(**faults), seed=1, clock=clock.time, sleep=clock.sleep)
    rounds = Rounds(deadline=100.0, poll=10.0, attempts=attempts)
    courier = Courier(grid, "a" * 64, rounds, None, sleep=clock.sleep, clock=clock.time)
    total, tally = courier.sum(1, "usage", SPEC, {}, grid.get_node_ids())
    return total, tally, clock.now


def test_late_answers_within_the_deadline_count():
    total, tally, waited = summed(stall=0.3, stall_seconds=50.0)
    assert total[0] == pytest.approx(PHONES, abs=0.1)
    assert (tally.replies, tally.dropped, dict(tally.refused)) == (PHONES, 0, {})
    assert waited == 50.0


def test_answers_after_the_deadline_are_lost_and_the_sum_goes_on():
    total, tally, waited = summed(stall=0.3, stall_seconds=150.0)
    assert 5 < tally.dropped < 35  # 18 expected; five deviations and more
    assert tally.replies == PHONES - tally.dropped
    assert total[0] == pytest.approx(tally.replies, abs=0.1)
    assert waited == 100.0


def test_an_answer_that_comes_during_the_next_attempt_is_not_counted_twice():
    total, tally, waited = summed(attempts=3, stall=0.3, stall_seconds=150.0)
    assert tally.dropped > 5
    assert tally.replies <= PHONES
    assert total[0] == pytest.approx(tally.replies, abs=0.1)
    assert waited > 100.0


def test_the_configuration_has_a_key_for_every_fault():
    asked = load_config(None, ["faults.stall=0.1", "faults.stall_seconds=5"]).faults
    assert asked == Faults(stall=0.1, stall_seconds=5.0)
    with pytest.raises(ConfigError, match="stall_seconds is 0"):
        load_config(None, ["faults.stall_seconds=0"])
    with pytest.raises(ConfigError, match=r"add up to 1[.]2: lower one"):
        load_config(None, ["faults.stall=0.6", "faults.silence=0.6"])
