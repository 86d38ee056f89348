"""A server's round number only labels a sum: the phone records by its own clock, and not while it is switched off."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedcaptor.client import device
from fedcaptor.client.device import Device
from fedcaptor.client.folder import DATABASE, open_ledger
from fedcaptor.client.usage import last_day_of
from fedcaptor.common.errors import PrivacyError
from tests.attacks.server.devices import Owner, delivery, learner, masked, phone, settings_of, start


def test_a_round_far_ahead_freezes_nothing(tmp_path: Path) -> None:
    one, owner = phone(tmp_path, Owner(1)), Owner(1)
    learner(tmp_path, owner, day=100, replying=False).work("usage")
    with pytest.raises(PrivacyError):
        one.masked(masked(3, round=1_000_000), start())
    one.deliver(*delivery(1, round=1_000_000))
    learner(tmp_path, owner, day=100, replying=False).work("usage")
    assert last_day_of(tmp_path / DATABASE) == 100
    learner(tmp_path, owner, day=101, replying=False).work("usage")
    assert last_day_of(tmp_path / DATABASE) == 101


def test_a_second_run_records_as_the_first_did(tmp_path: Path) -> None:
    """Rounds begin at 1 in each run."""
    for day in (100, 200):
        learner(tmp_path, Owner(1), day=day, replying=False).usage(1)
        assert last_day_of(tmp_path / DATABASE) == day


def test_a_clock_that_was_wrong_once_stops_nothing(tmp_path: Path) -> None:
    for day in (100, 90_000, 101):
        learner(tmp_path, Owner(1), day=day, replying=False).work("usage")
        assert last_day_of(tmp_path / DATABASE) == day


def test_nothing_is_recorded_while_answers_are_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of()
    with open_ledger(tmp_path, settings.privacy, make=True) as ledger:
        ledger.off()
    one = Device({}, tmp_path, tmp_path, tmp_path, "", (1, 1, 4), settings)
    monkeypatch.setattr(device, "today", lambda: 100)
    monkeypatch.setattr(Device, "_learner", lambda self, replying: learner(tmp_path, Owner(1), replying=replying))
    one.work("usage")
    assert last_day_of(tmp_path / DATABASE) == -1
    with open_ledger(tmp_path, settings.privacy) as ledger:
        ledger.on()
    one.work("usage")
    assert last_day_of(tmp_path / DATABASE) == 100
