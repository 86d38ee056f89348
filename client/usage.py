"""Log what a phone's owner meets: decaying weights per class in one SQLite file, no history.

The ledger may share the file. The log never leaves the phone.
"""

import math
import sqlite3
import zlib
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedcaptor.client.storage import OnPhoneFile, PhoneFile
from fedcaptor.common.distances import js_divergence, normalise
from fedcaptor.common.errors import ConfigError, DataError, StateError

MAX_CLASSES = 65_536
MAX_DAY = 1_000_000
FORGOTTEN = 2.0**-20  # a weight that decayed below it, 20 half-lives after one prediction, becomes 0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS usage_log (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    weights BLOB NOT NULL,
    mark BLOB,
    recorded INTEGER NOT NULL,
    corrected INTEGER NOT NULL,
    days INTEGER NOT NULL,
    last_day INTEGER NOT NULL,
    checksum INTEGER NOT NULL
)
"""


@dataclass(frozen=True)
class _State:
    """Hold the one row of the log; `weights` and `mark` are float64 [classes]."""

    weights: NDArray[np.float64]
    mark: NDArray[np.float64] | None = None
    recorded: int = 0
    corrected: int = 0
    days: int = 0
    last_day: int = -1

    def row(self) -> tuple[bytes | int | None, ...]:
        weights = self.weights.astype("<f8").tobytes()
        mark = None if self.mark is None else self.mark.astype("<f8").tobytes()
        counters = (self.recorded, self.corrected, self.days, self.last_day)
        return weights, mark, *counters, _checksum(weights, mark, counters)


def _checksum(weights: bytes, mark: bytes | None, counters: tuple[int, ...]) -> int:
    return zlib.crc32(repr(counters).encode() + (b"" if mark is None else b"m" + mark), zlib.crc32(weights))


def remembered(weights: NDArray[np.float64], shares: NDArray[np.float64], half_life: float) -> NDArray[np.float64]:
    """Return weights [classes] decayed by further predictions `shares` [n, classes], in the order they were made."""
    n, decay = len(shares), 2.0 ** (-1 / half_life)
    fresh = decay ** np.arange(n - 1, -1, -1, dtype=np.float64) @ shares
    weights = weights * decay**n + fresh
    weights[weights < FORGOTTEN] = 0
    return weights


def last_day_of(path: Path) -> int:
    """Return the day on which a log's file was written last, -1 where it holds none; needs no number of classes."""
    if not path.exists():
        return -1
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute("SELECT last_day FROM usage_log").fetchone()
    except sqlite3.Error:
        return -1
    return -1 if row is None else int(row[0])


class UsageLog(OnPhoneFile):
    """Keep a decaying weight of each class among the phone's predictions in `path` (the ledger may share the file).

    Every prediction multiplies all weights by 2**(-1 / half_life) and adds 1 to its class, so their sum stays below
    1 + half_life / ln 2 and the file holds O(classes) numbers for ever. `half_life` is in predictions and may change
    between openings. Raises ConfigError on a bad argument, StateError when the file is damaged, cannot be used or was
    written for another number of classes.
    """

    def __init__(self, path: str | Path, classes: int, half_life: float, durable: bool = True) -> None:
        if not 1 <= classes <= MAX_CLASSES:
            raise ConfigError(f"{classes} classes is outside 1 to {MAX_CLASSES}; change the number of classes")
        if not (np.isfinite(half_life) and half_life > 0):
            raise ConfigError(f"half_life {half_life} must be above 0 and finite; give a number of predictions")
        self.classes = classes
        self._half_life = half_life
        self._file = PhoneFile(path, (_SCHEMA,), durable)
        try:
            self._state()
        except BaseException:
            self.close()
            raise

    def record(self, labels: ArrayLike, day: int) -> None:
        """Add predictions, int [n] in the order they were made, of `day` (days since any fixed one) in one write.

        Raises DataError when a label or the day is out of bounds.
        """
        seen = np.asarray(labels)
        if seen.size == 0:
            return
        if seen.ndim != 1 or seen.dtype.kind not in "iu":
            raise DataError(f"labels are {seen.dtype} {seen.shape}, expected integers on one axis; convert them")
        for extreme in (int(seen.min()), int(seen.max())):
            self._check_label(extreme)
        shares = np.zeros((seen.size, self.classes))
        shares[np.arange(seen.size), seen] = 1.0
        self.record_shares(shares, day)

    def record_shares(self, shares: NDArray[np.float64], day: int) -> None:
        """Add predictions that are unsure, [n, classes] with rows that sum to one, as `record` does."""
        n = len(shares)
        if n == 0:
            return
        if shares.shape[1:] != (self.classes,) or not np.isfinite(shares).all() or shares.min() < 0:
            raise DataError(f"shares are {shares.shape}, expected (n, {self.classes}), finite and not negative")
        if not 0 <= day <= MAX_DAY:
            raise DataError(f"day {day} is outside 0 to {MAX_DAY}; count days from a fixed one")
        with self._file.transaction() as connection:
            old = self._load(connection)
            self._store(
                connection,
                replace(
                    old,
                    weights=remembered(old.weights, shares, self._half_life),
                    recorded=old.recorded + n,
                    days=old.days + (day != old.last_day),
                    last_day=day,
                ),
            )

    def correct(self, old_label: int, new_label: int) -> float:
        """Move one prediction's weight, or what is left of it, to the class the owner named. Returns the weight moved.

        Raises DataError when a label is out of bounds.
        """
        self._check_label(old_label)
        self._check_label(new_label)
        if old_label == new_label:
            return 0.0
        with self._file.transaction() as connection:
            old = self._load(connection)
            weights = old.weights.copy()
            moved = min(1.0, float(weights[old_label]))
            weights[old_label] -= moved
            weights[new_label] += moved
            self._store(connection, replace(old, weights=weights, corrected=old.corrected + 1))
        return moved

    def counts(self) -> NDArray[np.float64]:
        """Return the decayed weights, float64 [classes], in predictions."""
        return self._state().weights

    def distribution(self, smoothing: float = 0.0) -> NDArray[np.float64]:
        """Return each class's share, float64 [classes]: uniform for an empty log.

        `smoothing` is in predictions per class.
        """
        return normalise(self.counts(), smoothing)

    def mark(self) -> None:
        """Remember the present weights as those of the last personalisation."""
        with self._file.transaction() as connection:
            old = self._load(connection)
            self._store(connection, replace(old, mark=old.weights))

    @property
    def marked(self) -> bool:
        """Tell whether a personalisation was ever finished."""
        return self._state().mark is not None

    def drift(self, smoothing: float = 0.0) -> float:
        """Return the Jensen–Shannon divergence in bits, 0 to 1, of usage now and at the mark; 0 without a mark."""
        state = self._state()
        if state.mark is None:
            return 0.0
        return js_divergence(normalise(state.mark, smoothing), normalise(state.weights, smoothing))

    def drifted(self, least: float) -> bool:
        """Tell whether usage has drifted since the mark: by `least` bits, and by more than chance explains.

        Chance: a G-test (likelihood ratio of two multinomial distributions) of what was met since against the mark, at
        the 5 % level, so that a handful of images is no change of habits.
        """
        state = self._state()
        if state.mark is None or self.drift() < least:
            return False
        fresh = np.maximum(state.weights - state.mark, 0.0)
        return _g_test(state.mark, fresh) if fresh.sum() > 0 else False

    @property
    def last_day(self) -> int:
        """Return the day on which something was recorded last, by the clock of then, -1 for an empty log."""
        return self._state().last_day

    def _check_label(self, label: int) -> None:
        if not 0 <= label < self.classes:
            raise DataError(f"label {label} is outside 0 to {self.classes - 1}; leave it out or fix the class list")

    def _state(self) -> _State:
        with self._file.transaction(write=False) as connection:
            return self._load(connection)

    def _load(self, connection: sqlite3.Connection) -> _State:
        row = connection.execute(
            "SELECT weights, mark, recorded, corrected, days, last_day, checksum FROM usage_log"
        ).fetchone()
        if row is None:
            return _State(np.zeros(self.classes))
        weights, mark, *counters, checksum = row
        if not isinstance(weights, bytes) or not isinstance(mark, bytes | None):
            raise self._file.damaged("the usage log holds another type")
        if _checksum(weights, mark, tuple(counters)) != checksum:
            raise self._file.damaged("the usage log's checksum differs")
        if len(weights) != 8 * self.classes:
            raise StateError(
                f"{self._file.path} was written for {len(weights) // 8} classes, not {self.classes}; use the same "
                "class list or erase the usage log"
            )
        vectors = [None if blob is None else np.frombuffer(blob, "<f8").astype(np.float64) for blob in (weights, mark)]
        assert vectors[0] is not None
        return _State(vectors[0], vectors[1], *counters)

    def _store(self, connection: sqlite3.Connection, state: _State) -> None:
        connection.execute("INSERT OR REPLACE INTO usage_log VALUES (1, ?, ?, ?, ?, ?, ?, ?)", state.row())


def _g_test(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Tell whether two vectors of counts [classes] differ at the 5 % level, by Wilson & Hilferty's critical value."""
    table = np.stack([one, other])
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    found = table > 0
    statistic = 2 * float((table[found] * np.log(table[found] / expected[found])).sum())
    freedom = max(int((table.sum(0) >= 0.5).sum()) - 1, 1)  # classes of less than half an image are doubt, not habits
    spread = 2 / (9 * freedom)
    return statistic > freedom * (1 - spread + 1.645 * math.sqrt(spread)) ** 3
