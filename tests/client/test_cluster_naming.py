"""A phone names its cluster so often and no more, and never twice in two ways to one request."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fedcaptor.client.cluster_naming import NamingLedger
from fedcaptor.client.folder import status
from fedcaptor.client.ledger import Ledger
from fedcaptor.client.phone import Phone
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, PrivacyError
from fedcaptor.common.messages import DeliverRequest

DAY = 86_400.0


def opened(folder, clock, kind=NamingLedger):
    return kind(folder / "phone.db", clock=clock, durable=False, delta=1e-5, budget_epsilon=8.0)


def test_one_request_gets_one_name_whatever_the_habits_are_now(tmp_path, clock):
    with opened(tmp_path, clock) as ledger:
        assert ledger.named("a", 2, lambda: 3) == 3
        assert ledger.named("a", 2, lambda: 5) == 3
    with opened(tmp_path, clock) as again:
        assert again.named("a", 2, lambda: 5) == 3
        assert again.times_named() == 1
        assert again.spent() == 0


def test_beyond_the_bound_it_declines_until_the_period_is_over(tmp_path, clock):
    with opened(tmp_path, clock) as ledger:
        for number in range(3):
            ledger.named(str(number), 3, lambda: 0)
        with pytest.raises(PrivacyError, match=r"^declined: .* 3 times in the period, 3 at most"):
            ledger.named("more", 3, pytest.fail)
        assert ledger.named("0", 3, pytest.fail) == 0  # no news to the server
        clock.now += 91 * DAY
        assert ledger.named("more", 3, lambda: 1) == 1
        assert ledger.times_named() == 1
        clock.now -= 91 * DAY
        with pytest.raises(PrivacyError, match="3 at most"):  # a clock that is set back refunds nothing
            ledger.named("and more", 3, pytest.fail)


def test_erasing_leaves_the_count_alone(tmp_path, clock):
    with opened(tmp_path, clock) as ledger:
        ledger.named("a", 2, lambda: 3)
        ledger.erase()
        assert ledger.times_named() == 1
        with pytest.raises(PrivacyError, match="is erased"):
            ledger.named("a", 2, pytest.fail)
        ledger.off()
        with pytest.raises(PrivacyError, match="switched off"):
            ledger.named("b", 2, pytest.fail)


def test_a_phone_counts_what_it_names(tmp_path):
    config = load_config(None, ["delivery.mode=submodel", "delivery.fetches=2"])
    chosen = iter([4, 5, 6])
    learner = SimpleNamespace(nearest=lambda request, tensors: next(chosen))
    phone = Phone(tmp_path, lambda: learner, config, durable=False)

    def asked(round, *shares):
        names = {"weights": "e" * 64, "clusters": (), "digests": ()}
        request = DeliverRequest(run="a" * 64, round=round, request="b" * 32, mode="choose", **names)
        return phone.deliver(request, {"centroids": np.array([shares], np.float32)})

    assert [asked(0, 0.5, 0.5), asked(0, 0.5, 0.5), asked(0, 0.1, 0.9)] == [4, 4, 5]
    assert status(tmp_path, config.privacy).named == 2
    with pytest.raises(PrivacyError, match="2 at most"):
        asked(1, 0.5, 0.5)


def test_an_older_file_gets_its_table_and_too_many_rounds_are_refused(tmp_path, clock):
    with opened(tmp_path, clock, Ledger) as ledger, ledger._file.transaction() as connection:
        connection.execute("DROP TABLE ledger_named")
    with opened(tmp_path, clock) as ledger:
        assert ledger.named("a", 1, lambda: 2) == 2
    with pytest.raises(
        ConfigError, match=r"delivery\.fetches is 2, below the 3 rounds of a run or of 90 days .*: raise it"
    ):
        load_config(None, ["delivery.mode=submodel", "delivery.fetches=2", "run.rounds=3"])
