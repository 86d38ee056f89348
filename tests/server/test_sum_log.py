"""The log of a sum in progress: what of it outlives a stop, and when it is deleted."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import create_engine, text

from fedcaptor.common.errors import StateError
from fedcaptor.server import sum_log
from fedcaptor.server.journal import Journal

DIGEST, KEY = "a" * 64, (1, "usage-0", 0)
TOTAL = np.arange(5, dtype=np.uint32) + 2**31


def rows(url: str) -> list[int]:
    engine = create_engine(url)
    with engine.connect() as connection:
        tables = "sums_in_progress", "sum_replies"
        return [connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in tables]


def test_steps_that_are_over_are_read_back_in_order(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sum_log, "BATCH", 2)
    log = Journal(url, DIGEST).sum_log(*KEY)
    assert (log.attempt, log.closed) == ("", 0)
    log.begin("b" * 32, 3, {"asked": 1})
    sent = [(2**64 - 1, b"x"), (7, b"yy"), (3, b"zzz")]
    for node, kept in sent:
        log.add(node, kept)
    log.close(np.zeros(5, np.uint32), {"asked": 2})
    log.add(9, b"of a step that is not over")
    log.add(10, b"the same")
    again = Journal(url, DIGEST).sum_log(*KEY)
    assert (again.attempt, again.number, again.closed, again.tally) == ("b" * 32, 3, 1, {"asked": 2})
    assert list(again.replies(0)) == sent
    again.add(9, b"once more")
    again.close(TOTAL, {"asked": 3})
    last = Journal(url, DIGEST).sum_log(*KEY)
    assert list(last.replies(1)) == [(9, b"once more")]
    np.testing.assert_array_equal(last.total(), TOTAL)


@pytest.mark.parametrize("end", ["stored", "lost", "begun anew"])
def test_nothing_is_kept_longer_than_the_sum(end: str, url: str) -> None:
    journal = Journal(url, DIGEST)
    for round in (1, 2):
        log = journal.sum_log(round, "usage-0", 0)
        log.begin("b" * 32, 0, {})
        log.add(7, b"reply")
        log.close(TOTAL, {})
    assert rows(url) == [2, 2]
    if end == "stored":
        journal.phase(2, "usage-0", lambda: ({}, {"total": np.zeros(5)}))
    elif end == "lost":
        journal.lose(2, "usage-0", "late")
    else:
        log.begin("c" * 32, 1, {})
    assert rows(url) == ([2, 1] if end == "begun anew" else [1, 1])
    assert list(journal.sum_log(1, "usage-0", 0).replies(0)) == [(7, b"reply")]


def test_damage_is_found(url: str) -> None:
    log = Journal(url, DIGEST).sum_log(*KEY)
    log.begin("b" * 32, 0, {})
    log.add(7, b"reply")
    log.close(TOTAL, {})
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE sum_replies SET replies = :other"), {"other": b"\0"})
    with pytest.raises(StateError, match="round 1, phase usage-0: the sum in progress is damaged"):
        list(log.replies(0))
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE sum_replies"))
    with pytest.raises(StateError, match=r"cannot be stored or read \((SQLITE_ERROR|UndefinedTable)\); check the disk"):
        list(log.replies(0))
