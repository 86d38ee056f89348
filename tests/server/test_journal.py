"""Journal: a phase is computed once, a resume replays it, and damage or another run is refused."""

import math
import traceback

import numpy as np
import pytest
from sqlalchemy import create_engine, text

from fedcaptor.common.errors import PrivacyError, StateError
from fedcaptor.server.journal import Journal

DIGEST = "a" * 64


def never():
    raise AssertionError("computed twice")


def test_a_resume_replays_the_very_same_values(url):
    strided = np.arange(12, dtype=np.float32).reshape(3, 4).T
    tensors = {"x": strided, "scalar": np.array(3.5), "n": np.array([1, 2], dtype=np.uint32)}
    first = Journal(url, DIGEST)
    fresh = first.phase(1, "usage", lambda: ({"pair": (1, 2), "epsilon": 0.1}, tensors))
    first.close()
    again = Journal(url, DIGEST)
    replayed = again.phase(1, "usage", never)
    assert fresh[0] == replayed[0] == {"pair": [1, 2], "epsilon": 0.1}
    for name, value in tensors.items():
        for result in (fresh, replayed):
            np.testing.assert_array_equal(result[1][name], value)
            assert result[1][name].dtype == value.dtype
            assert result[1][name].shape == value.shape
    assert again.stored(2, "usage") is None
    assert again.phase(2, "usage", lambda: ({}, {})) == ({}, {})
    assert set(again.seconds()) == {(1, "usage"), (2, "usage")}


def test_a_failed_phase_leaves_nothing(url):
    journal = Journal(url, DIGEST)

    def fail():
        journal.refuse(1, "usage", "nan")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        journal.phase(1, "usage", fail)
    assert journal.stored(1, "usage") is None
    journal.phase(1, "usage", lambda: ({}, {}))
    assert journal.refused() == {}


def test_refusals_are_stored_once_with_their_phase(url):
    journal = Journal(url, DIGEST)

    def compute():
        for reason in ("nan", "nan", "replayed", "made up by a phone"):
            journal.refuse(1, "usage", reason)
        return {}, {}

    for _ in range(2):
        journal.phase(1, "usage", compute)
    assert journal.refused(1) == {"nan": 2, "replayed": 1, "malformed": 1}
    assert journal.refused(2) == {}


def test_lost_sums_are_counted_though_their_phase_is_not_stored(url):
    journal = Journal(url, DIGEST)

    def lose():
        journal.lose(1, "usage-0", "late")
        raise PrivacyError("too few")

    for _ in range(2):
        with pytest.raises(PrivacyError):
            journal.phase(1, "usage-0", lose)
    journal.lose(2, "usage-0", "late")
    journal.lose(1, "scores-0", "discarded")
    journal.phase(1, "usage-0", lambda: ({}, {}))
    journal.close()
    assert Journal(url, DIGEST).lost() == {("usage-0", "late"): 3, ("scores-0", "discarded"): 1}


def test_sums_that_were_charged_in_vain_are_counted_once_for_each_try(url):
    journal = Journal(url, DIGEST, iter(range(100)).__next__)
    for attempt, reason in (("b", "late"), ("b", "discarded"), ("c", "unopened"), ("d", "early")):
        journal.sum_log(1, "usage-0", 0).begin(attempt * 32, 0, {})
        journal.lose(1, "usage-0", reason, [2**64 - 1, 7] if reason == "unopened" else [])
    journal.lose(2, "usage-0", "late", [7])
    assert journal.in_vain() == [2, 3, 4]  # when, after the database was made and a try that was lost twice
    assert (journal.in_vain(1, "usage-0"), journal.in_vain(1, "scores-0")) == ([2, 3], [])
    journal.sum_log(1, "usage-0", 0).begin("b" * 32, 0, {})
    journal.phase(1, "usage-0", lambda: ({}, {}))  # a try that was lost came to something after all
    journal.close()
    again = Journal(url, DIGEST)
    assert (again.in_vain(), again.in_vain(1, "usage-0")) == ([3, 4], [3])
    assert (again.date(1, "usage-0"), again.date(3, "usage-0")) == (5, math.inf)
    assert again.excluded() == {7, 2**64 - 1}


def test_another_configuration_is_refused(url):
    Journal(url, DIGEST).close()
    with pytest.raises(StateError, match="belongs to run"):
        Journal(url, "b" * 64)


def test_damage_is_found(url):
    Journal(url, DIGEST).phase(1, "usage", lambda: ({"k": 1}, {"x": np.ones(3)}))
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("update phases set outcome = '{\"k\": 2}'"))
    engine.dispose()
    with pytest.raises(StateError, match="damaged"):
        Journal(url, DIGEST).phase(1, "usage", never)


@pytest.mark.parametrize("outcome", [{"x": float("nan")}, {"x": object()}])
def test_results_that_cannot_be_stored_are_refused(url, outcome):
    journal = Journal(url, DIGEST)
    with pytest.raises(StateError, match="cannot be stored"):
        journal.phase(1, "usage", lambda: (outcome, {}))
    assert journal.stored(1, "usage") is None


def test_two_servers_on_one_database(url):
    one, two = Journal(url, DIGEST), Journal(url, DIGEST)

    def compute():
        two.phase(1, "usage", lambda: ({"by": "two"}, {}))
        return {"by": "one"}, {}

    with pytest.raises(StateError, match="another server"):
        one.phase(1, "usage", compute)
    assert one.stored(1, "usage") == ({"by": "two"}, {})


def test_a_database_that_cannot_be_opened(tmp_path):
    with pytest.raises(StateError, match="cannot be opened"):
        Journal(f"sqlite:///{tmp_path / 'missing' / 'state.db'}", DIGEST)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+nodriver://user:hunter2@localhost/state",
        "sqlite+nodriver:///hunter2",
        "hunter2",
        "sqlite:///missing/hunter2/state.db",
        "postgresql://user:hunter2@host:hunter2/state",
    ],
)
def test_a_database_that_cannot_be_opened_is_said_without_its_url(url):
    with pytest.raises(StateError, match="cannot be opened") as error:
        Journal(url, DIGEST)
    assert "hunter2" not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize(
    "use",
    [
        lambda journal: journal.stored(1, "usage"),
        lambda journal: journal.refused(),
        lambda journal: journal.lose(1, "usage", "late"),
        lambda journal: journal.lost(),
        lambda journal: journal.seconds(),
        lambda journal: journal.phase(1, "usage", never),
    ],
)
def test_a_database_that_is_lost_on_the_way_is_a_state_error(use, url):
    journal = Journal(url, DIGEST)
    with create_engine(url).begin() as connection:
        for table in ("phases", "refused", "lost"):
            connection.execute(text(f"DROP TABLE {table}"))
    with pytest.raises(StateError, match=r"cannot be used \((SQLITE_ERROR|UndefinedTable)\); check") as error:
        use(journal)
    assert "DROP" not in "".join(traceback.format_exception(error.value))
