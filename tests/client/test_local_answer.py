"""The one answer: the same bytes for ever, charged once, on the disk before it is sent."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fedcaptor.client.folder import status
from fedcaptor.client.ledger import DECLINED, Ledger
from fedcaptor.client.local_answer import LocalLedger
from fedcaptor.client.phone import Phone
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import PrivacyError, StateError, WireError
from fedcaptor.common.messages import LocalRequest, MaskedRequest, SumFields, SumRequest
from fedcaptor.common.privacy.sums import SumSpec
from fedcaptor.server.local_design import best_local_spec

CLASSES = 40
SPEC = best_local_spec(CLASSES, 4.0)
DAY = 86_400.0
RUN, ID = "a" * 64, "b" * 32


def opened(path, clock, kind=LocalLedger, budget=4.0):
    return kind(path, clock=clock, durable=False, delta=1e-5, budget_epsilon=budget)


def draws(seed=0):
    """A fresh answer each time."""
    rng, usage = np.random.default_rng(seed), np.full(CLASSES, 1 / CLASSES)
    return lambda: SPEC.draw(usage, rng)


def test_asked_twice_the_same_bytes_are_sent_and_charged_once(tmp_path, clock):
    draw = draws()
    with opened(tmp_path / "phone.db", clock) as ledger:
        first = ledger.local(SPEC, draw)
        assert ledger.local(SPEC, draw) == first
    with opened(tmp_path / "phone.db", clock) as again:  # after a restart
        assert again.local(SPEC, draw) == first
        (charge,) = again.entries()
        assert (charge.kind, charge.pure, charge.answered) == ("local", True, True)
        assert again.spent() == pytest.approx(SPEC.epsilon, rel=1e-12)
    assert draw().tobytes() != first


def test_it_is_on_the_disk_before_it_is_sent(tmp_path, clock):
    with opened(tmp_path / "phone.db", clock) as ledger:
        sent = ledger.local(SPEC, draws())
        assert sent in (tmp_path / "phone.db").read_bytes()


def test_a_draw_that_fails_costs_nothing(tmp_path, clock):
    def fails():
        raise OSError("the camera is off")

    with opened(tmp_path / "phone.db", clock) as ledger:
        with pytest.raises(OSError, match="camera"):
            ledger.local(SPEC, fails)
        assert (ledger.entries(), ledger.spent()) == ([], 0.0)


@pytest.mark.parametrize("other", [best_local_spec(CLASSES, 3.0), replace(SPEC, classes=41)])
def test_another_question_in_the_period_is_declined(tmp_path, clock, other):
    with opened(tmp_path / "phone.db", clock, budget=100.0) as ledger:
        ledger.local(SPEC, draws())
        with pytest.raises(PrivacyError, match=f"{DECLINED}: another local question was answered"):
            ledger.local(other, draws())
        assert len(ledger.entries()) == 1


def test_erased_it_is_not_drawn_anew_before_the_period_is_over(tmp_path, clock):
    with opened(tmp_path / "phone.db", clock) as ledger:
        first = ledger.local(SPEC, draws())
        ledger.erase()
        assert first not in (tmp_path / "phone.db").read_bytes()
        with pytest.raises(PrivacyError, match=f"{DECLINED}: the period's answer is erased"):
            ledger.local(SPEC, draws(1))
        clock.now += 89 * DAY
        with pytest.raises(PrivacyError, match=DECLINED):
            ledger.local(SPEC, draws(1))
        clock.now += 2 * DAY
        assert ledger.local(SPEC, draws(1)) != first
        assert len(ledger.entries()) == 2
        assert ledger.spent() == pytest.approx(SPEC.epsilon)


def test_after_the_period_it_is_drawn_and_charged_anew(tmp_path, clock):
    draw = draws()
    with opened(tmp_path / "phone.db", clock) as ledger:
        first = ledger.local(SPEC, draw)
        clock.now += 91 * DAY
        second = ledger.local(SPEC, draw)
        assert second != first
        assert ledger.local(SPEC, draw) == second


def test_a_clock_that_was_set_back_brings_no_second_answer(tmp_path, clock):
    draw = draws()
    with opened(tmp_path / "phone.db", clock) as ledger:
        first = ledger.local(SPEC, draw)
        clock.now -= 300 * DAY
        assert ledger.local(SPEC, draw) == first


def test_above_the_budget_or_switched_off_it_declines(tmp_path, clock):
    why = r"local would raise epsilon from 0 to 4 .* budget is 3\.9"
    with opened(tmp_path / "phone.db", clock, budget=3.9) as ledger, pytest.raises(PrivacyError, match=why):
        ledger.local(SPEC, draws())
    with opened(tmp_path / "phone.db", clock) as ledger:
        ledger.local(SPEC, draws())
        ledger.off()
        with pytest.raises(PrivacyError, match="switched off"):
            ledger.local(SPEC, draws())


def test_it_adds_to_what_sums_have_spent(tmp_path, clock):
    sums = SumSpec("1-usage-0", 4, 1.0, 1000.0, 4.0, cohort=100, min_survivors=90)
    with opened(tmp_path / "phone.db", clock, budget=10.0) as ledger:
        ledger.answer(sums, "c" * 64, lambda: np.zeros(4, np.uint32))
        before = ledger.spent()
        ledger.local(SPEC, draws())
        assert ledger.spent() == pytest.approx(before + SPEC.epsilon)  # basic composition
    tight = opened(tmp_path / "phone.db", clock, kind=Ledger, budget=before + 3.9)
    with tight, pytest.raises(PrivacyError, match="would raise epsilon"):
        tight.answer(sums, "d" * 64, lambda: np.zeros(4, np.uint32))


def test_a_damaged_answer_is_not_sent(tmp_path, clock):
    with opened(tmp_path / "phone.db", clock) as ledger:
        ledger.local(SPEC, draws())
        with ledger._file.transaction() as connection:
            connection.execute("UPDATE ledger_answers SET answer = zeroblob(length(answer))")
        with pytest.raises(StateError, match="checksum"):
            ledger.local(SPEC, draws())


class MeetsOne:
    shipped = SimpleNamespace(groups=SimpleNamespace(classes=CLASSES))

    def usage(self, round):
        return np.eye(CLASSES)[7]


def phone(folder, *settings, seed=None):
    config = load_config(None, ["privacy.sums=local", "privacy.epsilon=4", *settings])
    learner = MeetsOne()
    return Phone(folder, lambda: learner, config, seed, durable=False)


def asked(spec=SPEC, run=RUN, round=1):
    return LocalRequest(
        run=run, round=round, request=ID, classes=spec.classes, present=spec.present, absent=spec.absent
    )


def test_a_phone_sends_the_same_to_every_run_and_its_owner_sees_the_charge(tmp_path):
    first = phone(tmp_path).local(asked())
    SPEC.check(first)
    np.testing.assert_array_equal(phone(tmp_path).local(asked(run="f" * 64, round=3)), first)
    found = status(tmp_path, load_config(None, ["privacy.epsilon=4"]).privacy)
    assert found.answers == {"local": 1}
    assert found.epsilon == pytest.approx(SPEC.epsilon)


def test_devices_draw_by_the_systems_randomness_and_simulations_by_a_seed(tmp_path):
    other = [phone(tmp_path / name).local(asked()) for name in "ab"]
    assert (other[0] != other[1]).any()
    same = [phone(tmp_path / name, seed=(1, 2)).local(asked()) for name in "cd"]
    np.testing.assert_array_equal(*same)


def test_phones_answer_in_the_one_way_that_they_are_configured_for(tmp_path):
    for sums in ("masked", "plain"):
        with pytest.raises(PrivacyError, match="declined"):
            phone(tmp_path, f"privacy.sums={sums}").local(asked())
    fields = SumFields.of(SumSpec("1-usage-0", 4, 1.0, 1000.0, 4.0, cohort=100, min_survivors=90))
    shared = {"run": RUN, "round": 1, "request": ID, "kind": "usage", "sum": fields}
    request = MaskedRequest(**shared, attempt="0" * 32, tensors="c" * 64, dropout=0.1, corrupted=0.05)
    with pytest.raises(PrivacyError, match="answers by itself alone: declined"):
        phone(tmp_path).masked(request, {})
    with pytest.raises(PrivacyError, match="not masked: declined"):
        phone(tmp_path).answer(SumRequest(**shared), {})
    assert not (tmp_path / "phone.db").exists()


def test_a_phone_declines_a_larger_epsilon_and_other_classes(tmp_path):
    with pytest.raises(PrivacyError, match="would raise epsilon"):
        phone(tmp_path).local(asked(best_local_spec(CLASSES, 4.1)))
    with pytest.raises(WireError, match="41 classes, not 40"):
        phone(tmp_path).local(asked(best_local_spec(41, 4.0)))
