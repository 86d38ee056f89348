"""The ledger: one charge per answer, the same bytes again, the budget over a sliding period, kills and damage."""

import hashlib
import math
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcaptor.client import ledger as ledger_module
from fedcaptor.client.ledger import DECLINED, Ledger
from fedcaptor.client.usage import UsageLog
from fedcaptor.common.errors import ConfigError, PrivacyError, StateError
from fedcaptor.common.privacy.sums import SumSpec, encode
from fedcaptor.common.privacy.zcdp import epsilon, noise_multiplier, sum_zcdp

DAY = 86_400.0
DELTA = 1e-6


class Clock:
    def __init__(self, now=1e9):
        self.now = now

    def __call__(self):
        return self.now


def spec(name="usage", multiplier=10.0, **changes):
    fields = dict(length=4, clip=1.0, scale=1024.0, noise_multiplier=multiplier, cohort=100, min_survivors=80)
    return SumSpec(name=name, **(fields | changes))


def digest(text):
    return hashlib.sha256(str(text).encode()).hexdigest()


def never():
    raise AssertionError("computed twice")


def values(number=0, length=4):
    return lambda: np.arange(length, dtype=np.uint32) + np.uint32(number)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "phone.db"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(path, clock):
    with opened(path, clock) as ledger:
        yield ledger


def opened(path, clock=None, budget=8.0, **changes):
    return Ledger(path, **(dict(durable=False, clock=clock or Clock(), delta=DELTA, budget_epsilon=budget) | changes))


def test_the_same_request_gets_the_same_values_for_no_charge(ledger, path, clock):
    rng = np.random.default_rng(1)
    first = ledger.answer(spec(), digest(1), lambda: encode(np.ones(4), spec(), rng))
    spent = ledger.spent()
    np.testing.assert_array_equal(ledger.answer(spec(), digest(1), never), first)
    with opened(path, clock) as again:
        replayed = again.answer(spec(), digest(1), never)
        assert replayed.tobytes() == first.tobytes()
        assert replayed.dtype == np.uint32
        assert again.spent() == spent == pytest.approx(epsilon([spec()], DELTA))
        assert len(again.entries()) == 1


def test_another_digest_or_sum_is_another_request(ledger):
    ledger.answer(spec(), digest(1), values(1))
    assert ledger.answer(spec(), digest(2), values(2))[0] == 2
    assert ledger.answer(spec(clip=0.5), digest(1), values(3))[0] == 3
    assert len(ledger.entries()) == 3


def test_an_entry_tells_the_owner_what_was_answered(ledger, clock):
    ledger.answer(spec("scores-4"), digest(1), values(), kind="scores")
    ledger.answer(spec("usage"), digest(2), values())
    first, second = ledger.entries()
    assert (first.at, first.request, first.kind, first.answered) == (clock.now, digest(1), "scores", True)
    assert first.rho == sum_zcdp(spec("scores-4"))
    assert second.kind == "usage"


def test_charges_compose_as_the_accounting_does(ledger):
    specs = [spec(str(number), 10.0 + number) for number in range(5)]
    for number, one in enumerate(specs):
        ledger.answer(one, digest(number), values())
    assert ledger.spent() == pytest.approx(epsilon(specs, DELTA), rel=1e-9)


def test_dishonest_phones_raise_the_price(path):
    with opened(path, dishonest=0.2) as ledger:
        ledger.answer(spec(), digest(1), values())
        assert ledger.entries()[0].rho == sum_zcdp(spec(), 0.2) > sum_zcdp(spec())


def test_a_calibrated_budget_is_met_exactly_and_then_declined(path, clock):
    multiplier = noise_multiplier(4.0, DELTA, [spec()] * 3)
    with opened(path, clock, budget=4.0) as ledger:
        for number in range(3):
            ledger.answer(spec(multiplier=multiplier), digest(number), values())
        with pytest.raises(PrivacyError, match=f"^{DECLINED}: .* the budget is 4 in 90 days; wait"):
            ledger.answer(spec(multiplier=multiplier), digest(3), never)
        assert len(ledger.entries()) == 3
        assert ledger.spent() == pytest.approx(4.0, rel=1e-6)
        ledger.answer(spec(multiplier=multiplier), digest(2), never)  # asked again: free


def test_the_period_slides(path, clock):
    price = epsilon([spec()], DELTA)
    with opened(path, clock, budget=price, period_days=90) as ledger:
        start = clock.now
        ledger.answer(spec(), digest(1), values())
        clock.now = start + 90 * DAY - 1
        with pytest.raises(PrivacyError, match=DECLINED):
            ledger.answer(spec(), digest(2), never)
        clock.now = start + 90 * DAY
        assert ledger.spent() == 0
        ledger.answer(spec(), digest(2), values(7))
        assert ledger.spent() == pytest.approx(price)
        assert [entry.answered for entry in ledger.entries()] == [False, True]
        clock.now = start  # a clock set back: both count
        assert ledger.spent() == pytest.approx(epsilon([spec()] * 2, DELTA))
        with pytest.raises(PrivacyError, match=DECLINED):
            ledger.answer(spec(), digest(1), never)


def test_opening_drops_answers_out_of_the_period(path, clock):
    with opened(path, clock) as ledger:
        ledger.answer(spec(), digest(1), values())
    clock.now += 91 * DAY
    with opened(path, clock) as ledger:
        assert [entry.answered for entry in ledger.entries()] == [False]


def test_noise_that_is_off_needs_an_infinite_budget(path):
    silent = spec(multiplier=0.0)
    with opened(path) as ledger, pytest.raises(PrivacyError, match="from 0 to inf"):
        ledger.answer(silent, digest(1), never)
    with opened(path, budget=math.inf) as ledger:
        ledger.answer(silent, digest(1), values())
        ledger.answer(silent, digest(2), values())
        assert ledger.spent() == math.inf
    with opened(path) as ledger:
        assert ledger.spent() == math.inf
        with pytest.raises(PrivacyError, match="from inf to inf"):
            ledger.answer(spec(), digest(3), never)


def test_the_number_of_answers_and_bytes_is_bounded(path, monkeypatch):
    monkeypatch.setattr(ledger_module, "MAX_ANSWERS", 3)
    with opened(path) as ledger:
        for number in range(5):
            ledger.answer(spec(multiplier=100.0), digest(number), values(number))
        assert [entry.answered for entry in ledger.entries()] == [False, False, True, True, True]
        monkeypatch.setattr(ledger_module, "MAX_ANSWER_BYTES", 20)
        ledger.answer(spec(multiplier=100.0), digest(5), values(5))
        assert [entry.answered for entry in ledger.entries()] == [False] * 5 + [True]
        spent = ledger.spent()
        ledger.answer(spec(multiplier=100.0), digest(0), values(9))  # no longer kept: new noise, new charge
        assert ledger.spent() > spent


def test_the_number_of_charges_is_bounded(path, clock, monkeypatch):
    monkeypatch.setattr(ledger_module, "MAX_CHARGES", 3)
    monkeypatch.setattr(ledger_module, "KEPT_CHARGES", 2)
    with opened(path, clock) as ledger:
        for number in range(3):
            ledger.answer(spec(multiplier=1000.0), digest(number), values())
        with pytest.raises(PrivacyError, match="3 answers in the period, the bound is 3"):
            ledger.answer(spec(multiplier=1000.0), digest(3), never)
        clock.now += 91 * DAY
        ledger.answer(spec(multiplier=1000.0), digest(3), values())
        assert [entry.request for entry in ledger.entries()] == [digest(2), digest(3)]


def test_off_declines_all_until_on(path, clock):
    with opened(path, clock) as ledger:
        ledger.answer(spec(), digest(1), values())
        assert not ledger.is_off
        ledger.off()
        ledger.off()
    with opened(path, clock) as ledger:
        assert ledger.is_off
        for request in (1, 2):
            with pytest.raises(PrivacyError, match=f"^{DECLINED}: .*off"):
                ledger.answer(spec(), digest(request), never)
        ledger.on()
        ledger.answer(spec(), digest(1), never)


def test_erasing_empties_the_file_and_refunds_nothing(path, clock):
    secret = 0xFEEDBEEF
    with opened(path, clock) as ledger, UsageLog(path, 3, 10.0, durable=False) as log:
        log.record([1, 1], 0)
        ledger.answer(spec(), digest(1), lambda: np.full(4, secret, np.uint32))
        ledger.off()
        spent = ledger.spent()
        assert np.uint32(secret).tobytes() in path.read_bytes()
        ledger.erase()
        assert np.uint32(secret).tobytes() not in path.read_bytes()
        assert ledger.spent() == spent
        assert ledger.is_off
        assert [entry.answered for entry in ledger.entries()] == [False]
        assert log.counts().sum() == 0
        log.record([2], 1)
        ledger.on()
        ledger.answer(spec(), digest(1), values())
        assert len(ledger.entries()) == 2
        assert ledger.spent() > spent


def test_a_failed_computation_charges_nothing(ledger):
    with pytest.raises(ZeroDivisionError):
        ledger.answer(spec(), digest(1), lambda: 1 // 0)
    assert ledger.entries() == []


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (np.zeros(3, np.uint32), r"uint32 \(3,\), expected uint32 \(4,\)"),
        (np.zeros(4), r"float64 \(4,\)"),
        (np.full(4, 256, np.uint32), r"holds 256, the bound is 2\*\*8 - 1"),
    ],
)
def test_a_reply_that_breaks_its_sum_is_neither_sent_nor_charged(ledger, reply, message):
    small = spec(bits=8, scale=1.0, noise_multiplier=6.0, cohort=20, min_survivors=20, min_cohort=20, clip=1.0)
    with pytest.raises(PrivacyError, match=message):
        ledger.answer(small, digest(1), lambda: reply)
    assert ledger.entries() == []


@pytest.mark.parametrize("bad", ["", "xyz", "A" * 64, "a" * 31, "a" * 65])
def test_a_digest_that_is_none_is_refused(ledger, bad):
    with pytest.raises(PrivacyError, match="32 to 64 hex digits"):
        ledger.answer(spec(), bad, never)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": 0.0}, "delta 0.0 is outside 0 to 1"),
        ({"budget_epsilon": 0.0}, "budget_epsilon 0.0 must be above 0"),
        ({"budget_epsilon": math.nan}, "budget_epsilon nan"),
        ({"period_days": 0}, "period_days 0 is below 1"),
        ({"dishonest": 1.0}, "dishonest fraction 1.0"),
    ],
)
def test_bad_arguments_name_the_bound(path, change, message):
    with pytest.raises(ConfigError, match=message):
        opened(path, **change)


def test_the_charge_is_stored_before_the_answer_is_returned(path, monkeypatch):
    statements = []
    with opened(path) as ledger:
        ledger._file._connection.set_trace_callback(statements.append)
        ledger.answer(spec(), digest(1), values())
        assert statements[-1] == "COMMIT"
        begin = max(place for place, text in enumerate(statements) if text == "BEGIN IMMEDIATE")
        written = [text.split("(")[0].split()[2] for text in statements[begin:] if text.startswith("INSERT")]
        assert written == ["ledger_charges", "ledger_answers"]  # one transaction holds both
        with sqlite3.connect(path) as other:
            assert other.execute("SELECT count(*) FROM ledger_charges JOIN ledger_answers ON charge = id").fetchone()[0]


def test_of_two_threads_one_answer_counts(path):
    barrier = threading.Barrier(2, timeout=30)
    replies = []

    def compute(number):
        barrier.wait()
        return values(number)()

    with opened(path) as ledger:
        threads = [
            threading.Thread(target=lambda n=n: replies.append(ledger.answer(spec(), digest(1), lambda: compute(n))))
            for n in (1, 2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(replies) == 2
        np.testing.assert_array_equal(*replies)
        assert len(ledger.entries()) == 1


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(3.0, 60.0), st.floats(0, 40 * DAY)), max_size=12),
    st.floats(0.3, 4.0),
)
def test_the_budget_holds_in_every_period_whatever_is_asked(tmp_path_factory, asked, budget):
    clock = Clock()
    given: list[tuple[float, SumSpec]] = []
    with opened(tmp_path_factory.mktemp("ledger") / "phone.db", clock, budget) as ledger:
        for request, multiplier, wait in asked:
            clock.now += wait
            one = spec(multiplier=multiplier)
            before = len(ledger.entries())
            try:
                ledger.answer(one, digest(request), values())
            except PrivacyError:
                assert epsilon([s for at, s in given if at > clock.now - 90 * DAY] + [one], DELTA) > budget
            if len(ledger.entries()) > before:
                given.append((clock.now, one))
            assert ledger.spent() <= budget * (1 + 1e-6)
            assert ledger.spent() == pytest.approx(
                epsilon([s for at, s in given if at > clock.now - 90 * DAY], DELTA), rel=1e-9
            )


@pytest.mark.parametrize("column", ["rho = 1e-9", "at = at - 1", "kind = 'x'"])
def test_a_changed_charge_is_damage(path, column):
    with opened(path) as ledger:
        ledger.answer(spec(), digest(1), values())
    with sqlite3.connect(path) as other:
        other.execute(f"UPDATE ledger_charges SET {column}")
    other.close()
    with pytest.raises(StateError, match=r"phone\.db is damaged \(the checksum of a charge differs\); restore"):
        opened(path)


def test_a_changed_answer_is_damage(path):
    with opened(path) as ledger:
        ledger.answer(spec(), digest(1), values())
        with sqlite3.connect(path) as other:
            other.execute("UPDATE ledger_answers SET answer = zeroblob(16)")
        other.close()
        with pytest.raises(StateError, match="checksum of a stored answer"):
            ledger.answer(spec(), digest(1), never)


def test_a_file_that_is_no_database_is_damage(path):
    path.write_bytes(b"x" * 5000)
    with pytest.raises(StateError, match=r"phone\.db is damaged .*stay out of sums for one budget period"):
        opened(path)


COMMON = """
import hashlib, os, sys
import numpy as np
from fedcaptor.client.ledger import Ledger
from fedcaptor.common.privacy.sums import SumSpec
spec = SumSpec("usage", 2000, 1.0, 1024.0, 1000.0, 100, 80)
digest = lambda number: hashlib.sha256(str(number).encode()).hexdigest()
ledger = Ledger(sys.argv[1], delta=1e-6, budget_epsilon=8.0, durable=sys.argv[2] == "durable")
def compute():
    return np.frombuffer(os.urandom(8000), np.uint32)
"""
ANSWERING = (
    COMMON
    + """
number = len(ledger.entries())
while True:
    reply = ledger.answer(spec, digest(number), compute)
    print(digest(number), hashlib.sha256(reply.tobytes()).hexdigest(), flush=True)
    number += 1
"""
)
DYING = (
    COMMON
    + """
if sys.argv[3] == "computing":
    compute = lambda: os._exit(9)
else:
    commits = []
    def trace(sql):
        if sql == "COMMIT":
            commits.append(sql)
            if len(commits) == 2:  # the first one ends the reading before the computation
                os._exit(9)
    ledger._file._connection.set_trace_callback(trace)
ledger.answer(spec, digest(0), compute)
"""
)
KILLED = SumSpec("usage", 2000, 1.0, 1024.0, 1000.0, 100, 80)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["durable", "simulated"])
def test_after_a_kill_every_answer_given_is_charged_and_given_again(path, mode):
    said = {}
    for pause in (0.017, 0.041):
        with subprocess.Popen(
            [sys.executable, "-c", ANSWERING, str(path), mode], stdout=subprocess.PIPE, text=True
        ) as process:
            said |= [process.stdout.readline().split()]
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
            lines = process.stdout.read().split("\n")[:-1]  # a last line may be cut off
        said |= [line.split() for line in lines]
        with Ledger(path, delta=DELTA, budget_epsilon=8.0, durable=False) as ledger:
            entries = ledger.entries()
            assert set(said) <= {entry.request for entry in entries}
            assert len({entry.request for entry in entries}) == len(entries)
            kept = [entry.request for entry in entries if entry.answered]
            assert len(kept) == min(len(entries), ledger_module.MAX_ANSWERS)
            for request in kept:
                again = ledger.answer(KILLED, request, never)
                if request in said:
                    assert hashlib.sha256(again.tobytes()).hexdigest() == said[request]
    assert said


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["computing", "committing"])
def test_an_exit_before_the_commit_leaves_neither_charge_nor_answer(path, moment):
    command = [sys.executable, "-c", DYING, str(path), "simulated", moment]
    assert subprocess.run(command).returncode == 9
    with Ledger(path, delta=DELTA, budget_epsilon=8.0, durable=False) as ledger:
        assert ledger.entries() == []
        ledger.answer(KILLED, digest(0), values(length=2000))
        assert len(ledger.entries()) == 1
