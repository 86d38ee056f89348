"""The usage log: decay by hand, bounded size, kills, damage and bounds."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from fedcaptor.client.usage import FORGOTTEN, MAX_CLASSES, UsageLog, _g_test, last_day_of
from fedcaptor.common.errors import ConfigError, DataError, StateError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "phone.db"


def opened(path, classes=3, half_life=1.0):
    return UsageLog(path, classes, half_life, durable=False)


def test_decay_by_hand(path):
    log = opened(path)
    log.record(np.array([0, 1]), 0)  # half-life of one prediction: 1/2 and 1
    np.testing.assert_allclose(log.counts(), [0.5, 1, 0])
    log.record(np.array([1]), 0)
    np.testing.assert_allclose(log.counts(), [0.25, 1.5, 0])
    np.testing.assert_allclose(log.distribution(), [1 / 7, 6 / 7, 0])
    np.testing.assert_allclose(log.distribution(1), [1.25 / 4.75, 2.5 / 4.75, 1 / 4.75])


def test_it_persists_and_its_half_life_may_change(path):
    with UsageLog(path, 3, 1.0) as log:
        log.record([2, 2], 4)
        log.mark()
    with UsageLog(path, 3, 2.0) as log:
        np.testing.assert_allclose(log.counts(), [0, 0, 1.5])
        log.record([0, 0], 5)
        np.testing.assert_allclose(log.counts(), [1 + 2**-0.5, 0, 0.75])
        assert log.drift() > 0
        assert (log._state().recorded, log._state().corrected, log._state().days) == (4, 0, 2)


def test_correction_moves_what_is_left_of_one_prediction(path):
    log = opened(path, half_life=1e12)
    log.record([0, 0, 1], 0)
    assert log.correct(0, 2) == 1
    np.testing.assert_allclose(log.counts(), [1, 1, 1])
    log = opened(path.with_name("other.db"))
    log.record([0, 1], 0)
    assert log.correct(0, 2) == 0.5
    np.testing.assert_allclose(log.counts(), [0, 1, 0.5])
    assert log.correct(0, 2) == 0
    assert log.correct(1, 1) == 0
    assert (log._state().recorded, log._state().corrected) == (2, 2)


def test_drift_compares_with_the_mark(path):
    log = opened(path, classes=2)
    assert log.drift() == 0
    log.record([0], 0)
    assert log.drift() == 0
    log.mark()
    assert log.drift() == 0
    log.record([1] * 60, 1)
    assert log.drift() == pytest.approx(1)  # the class of before is forgotten
    assert 0 < log.drift(smoothing=1) < 0.5
    log.mark()
    assert log.drift() == 0


def drifted(path, before, after, least=0.1):
    """After images of each class before and after the mark."""
    path.unlink(missing_ok=True)
    with opened(path, half_life=1e12) as log:
        log.record(np.repeat([0, 1, 2], before), 0)
        log.mark()
        log.record(np.repeat([0, 1, 2], after), 1)
        return log.drifted(least)


def test_a_handful_of_images_is_no_drift_and_many_of_other_classes_are(path):
    assert not drifted(path, [2, 2, 0], [0, 0, 0], least=0)
    assert not drifted(path, [2, 2, 0], [0, 0, 1])  # 0.11 bits, by chance
    assert not drifted(path, [10, 5, 1], [1, 3, 1], least=0)
    assert drifted(path, [50, 50, 0], [0, 0, 60])
    assert not drifted(path, [50, 50, 0], [0, 0, 60], least=0.9)


def test_a_slight_drift_is_none_however_certain(path):
    assert drifted(path, [500, 500, 0], [700, 300, 0], least=0)
    assert not drifted(path, [500, 500, 0], [700, 300, 0])


def test_without_a_mark_nothing_has_drifted(path):
    log = opened(path)
    log.record([0], 0)
    assert not log.drifted(0)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=6).filter(
        lambda rows: all(sum(row) for row in rows) and all(sum(column) for column in zip(*rows, strict=True))
    )
)
def test_chance_is_told_from_drift_as_scipy_does(rows):
    before, after = np.array(rows, dtype=float).T
    chance = stats.chi2_contingency([before, after], correction=False, lambda_="log-likelihood").pvalue
    assume(abs(chance - 0.05) > 0.005)
    assert _g_test(before, after) == (chance < 0.05)


def test_an_empty_log_knows_nothing(path):
    log = opened(path, classes=4)
    np.testing.assert_array_equal(log.counts(), np.zeros(4))
    np.testing.assert_array_equal(log.distribution(0.5), np.full(4, 0.25))
    log.record([], 0)
    assert log._state().recorded == 0


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=30), max_size=6),
    st.floats(0.1, 1e6),
)
def test_batches_do_not_matter_and_weights_stay_bounded(tmp_path_factory, batches, half_life):
    folder = tmp_path_factory.mktemp("usage")
    split, whole = opened(folder / "a.db", 5, half_life), opened(folder / "b.db", 5, half_life)
    for batch in batches:
        split.record(np.array(batch, dtype=np.int32), 0)
    whole.record(np.array([label for batch in batches for label in batch], dtype=np.uint8), 0)
    np.testing.assert_allclose(split.counts(), whole.counts(), atol=4 * FORGOTTEN, rtol=1e-9)
    assert split.counts().sum() <= 1 + half_life / np.log(2)
    assert (split.counts() >= 0).all()
    split.close()
    whole.close()


def test_the_file_does_not_grow_and_is_the_owners_alone(path):
    log = opened(path, classes=100, half_life=200.0)
    rng = np.random.default_rng(0)
    log.record(rng.integers(0, 100, 1000), 0)
    log.mark()
    size = path.stat().st_size
    for day in range(50):
        log.record(rng.integers(0, 100, 1000), day)
        log.mark()
    assert path.stat().st_size == size
    assert size < 64 << 10
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert log._state().recorded == 51_000
    assert log._state().days == 50


def test_a_clock_that_was_set_back_counts_on(path):
    log = opened(path)
    for day in (5, 5, 3, 6):
        log.record([0], day)
    assert (log._state().days, log.last_day, last_day_of(path)) == (3, 6, 6)


def test_a_file_without_a_log_has_no_last_day(path):
    assert last_day_of(path) == -1
    path.write_bytes(b"no database")
    assert last_day_of(path) == -1


@pytest.mark.parametrize(
    ("labels", "day", "message"),
    [
        ([0, 3], 0, "label 3 is outside 0 to 2"),
        ([-1, 0], 0, "label -1 is outside 0 to 2"),
        ([0.5], 0, "labels are float64"),
        ([[1]], 0, "labels are int64"),
        ([1], -1, "day -1 is outside 0 to"),
    ],
)
def test_bad_records_name_the_bound_and_leave_no_trace(path, labels, day, message):
    log = opened(path)
    with pytest.raises(DataError, match=message):
        log.record(np.array(labels), day)
    assert log._state().recorded == 0


def test_bad_arguments_name_the_bound(path):
    log = opened(path)
    with pytest.raises(DataError, match="label 3 is outside 0 to 2"):
        log.correct(0, 3)
    with pytest.raises(DataError, match="label -1"):
        log.correct(-1, 0)
    for classes in (0, MAX_CLASSES + 1):
        with pytest.raises(ConfigError, match=f"{classes} classes"):
            opened(path, classes)
    for half_life in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ConfigError, match="half_life"):
            opened(path, half_life=half_life)


def test_another_number_of_classes_is_refused(path):
    opened(path).record([0], 0)
    with pytest.raises(StateError, match=r"phone\.db was written for 3 classes, not 4; use"):
        opened(path, 4)


def flipped(path):
    data = bytearray(path.read_bytes())
    at = data.rindex(np.array([0, 1.5, 0.25]).tobytes())
    data[at + 9] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"not a database, but longer than a header" * 40),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(path.read_bytes()[:4096] + os.urandom(path.stat().st_size - 4096)),
        flipped,
    ],
)
def test_damage_names_the_file_and_the_remedy(path, damage):
    with opened(path) as log:
        log.record([2, 1, 1], 0)
    damage(path)
    with pytest.raises(StateError, match=r"phone\.db is damaged .*; restore a backup, or move it away"):
        opened(path)


def test_a_missing_folder_names_the_file(path):
    with pytest.raises(StateError, match=r"none/phone\.db cannot be used"):
        opened(path.parent / "none" / "phone.db")


def test_use_after_close_is_a_state_error(path):
    log = opened(path)
    log.close()
    with pytest.raises(StateError, match="cannot be used"):
        log.counts()


WRITER = """
import sys
from fedcaptor.client.usage import UsageLog
log = UsageLog(sys.argv[1], 50, 1e15, durable=sys.argv[2] == "durable")
batch = list(range(50)) * 2
while True:
    log.record(batch, 0)
    print(log._state().recorded, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["durable", "simulated"])
def test_a_kill_in_mid_write_loses_a_whole_batch_or_none(path, mode):
    last = 0
    for pause in (0.013, 0.037):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), mode], stdout=subprocess.PIPE, text=True
        ) as writer:
            writer.stdout.readline()
            time.sleep(pause)
            writer.send_signal(signal.SIGKILL)
            printed = writer.stdout.read().split("\n")  # a last line may be cut off
        said = int(printed[-2]) if len(printed) > 1 else last
        with opened(path, 50, 1e15) as log:
            assert log._state().recorded % 100 == 0
            assert log._state().recorded >= said >= last
            np.testing.assert_allclose(log.counts(), np.full(50, log._state().recorded / 50), rtol=1e-9)
            last = log._state().recorded
    assert last > 0


DYING = """
import os, sys
from fedcaptor.client.usage import UsageLog
log = UsageLog(sys.argv[1], 3, 1.0, durable=False)
log._file._connection.set_trace_callback(lambda sql: os._exit(9) if sql == "COMMIT" else None)
log.record([2, 2, 2], 0)
"""


def test_an_exit_before_the_commit_leaves_the_old_weights(path):
    with opened(path) as log:
        log.record([0], 0)
    assert subprocess.run([sys.executable, "-c", DYING, str(path)]).returncode == 9
    with opened(path) as log:
        assert log.counts().tolist() == [1, 0, 0]


def test_a_locked_file_is_said_to_be_held(path, monkeypatch):
    monkeypatch.setattr("fedcaptor.client.storage._WAIT_SECONDS", 0.01)
    log = opened(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateError, match=r"locked.*no other program holds the file"):
        log.record([0], 0)
    other.close()
    log.record([0], 0)
    assert log._state().recorded == 1
