"""A run that is killed in the middle of a phase goes on from the last finished one, as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fedcaptor.client.folder import CONTENTS, OUTCOME_FILE
from fedcaptor.client.ledger import Ledger
from fedcaptor.common.config import load_config
from fedcaptor.simulations.runner import simulate
from tests import tiny

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
PHONES = 36
RUN = [
    f"population.phones={PHONES}",
    "privacy.dropout=0.3",
    "faults.dropout=0.2",
    "faults.malformed=0.05",
]


class Run:
    """`fedcaptor simulate` as an operator starts it, in a process of its own."""

    def __init__(self, out: Path, sets: list[str]) -> None:
        self.out = out
        words = [word for value in sets for word in ("--set", value)]
        self._command = [sys.executable, "-m", "fedcaptor.cli.main", "simulate", "--out", str(out), *words]

    def start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # A shell's background job ignores SIGINT, and its children would do so too.
        return subprocess.Popen(  # type: ignore[call-overload]
            self._command,
            cwd=ROOT,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **pipes,
        )

    def finish(self) -> tuple[int, str]:
        """Exit code and standard error."""
        process = self.start()
        error = process.communicate(timeout=120)[1]
        return process.returncode, error

    def stop(self, phase: str, number: int) -> tuple[int, str]:
        """Send signal `number` while phones answer in `phase`; exit code and standard error."""
        process = self.start()
        try:
            while not self._answering(phase):
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.002)
            process.send_signal(number)
            error = process.communicate(timeout=60)[1]
        finally:
            process.kill()
        assert phase not in self.journal(), "the phase was over before the signal came"
        return process.returncode, error

    def _answering(self, phase: str) -> bool:
        """Whether one of the first phones has answered in `phase`."""
        first = [self.out / "phones" / f"{number:06d}" for number in range(4)]
        if phase == "deliver":
            return any((folder / OUTCOME_FILE).exists() for folder in first)
        kind, index = phase.rsplit("-", 1)
        query = f"SELECT count(*) FROM ledger_charges WHERE kind = '{kind}'"
        return any(rows(folder / "phone.db", query) > [(int(index),)] for folder in first)

    def journal(self) -> dict[str, tuple[Any, ...]]:
        """Every finished phase as it is stored, with its seconds."""
        query = "SELECT phase, round, outcome, tensors, checksum, seconds FROM phases ORDER BY round, phase"
        return {row[0]: row[1:] for row in rows(self.out / "state.db", query)}

    def charges(self) -> list[list[tuple[str, str, float]]]:
        """What each phone's ledger was charged, in order: request, kind and rho."""
        result = []
        for number in range(PHONES):
            path = self.out / "phones" / f"{number:06d}" / "phone.db"
            with Ledger(path, durable=False, delta=1e-5, budget_epsilon=8.0) as ledger:
                result.append([(c.request, c.kind, c.rho) for c in ledger.entries()])
        return result

    def read(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.out / name).read_text())
        return content


def rows(path: Path, query: str) -> list[Any]:
    """Rows of an SQLite file that another process writes; none while it is not there or busy."""
    if not path.exists():
        return []
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=0)) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []


@pytest.fixture(scope="module")
def sets(bars: tuple[Path, Path]) -> list[str]:
    return tiny.overrides(*bars, *RUN)


@pytest.fixture(scope="module")
def whole(sets: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nobody disturbed."""
    run = Run(tmp_path_factory.mktemp("whole") / "run", sets)
    simulate(load_config(None, sets), run.out)
    return run


def without_times(journal: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    return {name: row[:-1] for name, row in journal.items()}


@pytest.mark.parametrize(
    "stops",
    [
        [("usage-1", signal.SIGKILL), ("deliver", signal.SIGKILL)],
        [("usage-2", signal.SIGINT), ("scores-0", signal.SIGKILL)],
    ],
    ids=["killed twice", "interrupted and killed"],
)
def test_a_stopped_run_ends_like_one_that_was_not(
    stops: list[tuple[str, signal.Signals]], whole: Run, sets: list[str], tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", sets)
    before: dict[str, tuple[Any, ...]] = {}
    for phase, number in stops:
        code, error = run.stop(phase, number)
        if number == signal.SIGINT:
            last = error.strip().splitlines()[-1]
            assert (code, last) == (130, "interrupted: the same command goes on from the last finished phase")
        else:
            assert code == -signal.SIGKILL
        now = run.journal()
        assert now.keys() > before.keys()
        assert {name: now[name] for name in before} == before  # seconds too: nothing was asked again
        before = now
    code, error = run.finish()
    assert code == 0, error

    after = run.journal()
    assert {name: after[name] for name in before} == before
    assert without_times(after) == without_times(whole.journal())  # plans among them
    assert run.charges() == whole.charges()
    modes = {path.relative_to(run.out): path.stat().st_mode & 0o777 for path in (run.out / "phones").glob("*/*")}
    assert [path for path in modes if path.name not in CONTENTS] == []
    assert set(modes.values()) == {0o600}, modes
    summary, expected = run.read("summary.json"), whole.read("summary.json")
    for name in ("seconds", "peak_rss_bytes", "provenance"):
        del summary[name], expected[name]
    assert summary == expected
    assert summary["faults"]["dropped"] > 0
    assert summary["faults"]["refused"] > 0
    for name in ("clusters", "phones", "sums"):
        assert run.read("details.json")[name] == whole.read("details.json")[name]


def test_every_request_is_charged_once(whole: Run) -> None:
    for charges in whole.charges():
        requests = [request for request, _, _ in charges]
        assert len(requests) == len(set(requests))
        assert all(rho > 0 for _, _, rho in charges)
        assert 0 < len(requests) <= 5
