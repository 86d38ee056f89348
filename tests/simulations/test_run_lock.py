"""A run's folder belongs to one process at a time, and a dead one's lock to nobody."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedcaptor
from fedcaptor.simulations.run_lock import LOCK, locked, refuse_if_in_use
from fedcaptor.simulations.runner import remove_run

HOLD = (
    "import sys; from pathlib import Path; from fedcaptor.simulations.run_lock import locked\n"
    "with locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder `tmp_path`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


def test_a_folder_in_use_is_refused_by_every_way_in(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    message = rf"is in use by process {holder.pid} on .+, since 2.+: wait for its end, stop it, or choose another"
    with pytest.raises(fedcaptor.StateError, match=message), locked(tmp_path):
        pytest.fail("two processes hold the folder")
    for out, seeds in ((tmp_path, None), (tmp_path, "0..1"), (tmp_path / "seed-1", None)):
        with pytest.raises(fedcaptor.StateError, match=message):
            refuse_if_in_use(out, seeds)
    with pytest.raises(fedcaptor.StateError, match=message):
        refuse_if_in_use(tmp_path.parent, f"0,{_seed_of(tmp_path)}")
    for seeds in (None, "3"):
        with pytest.raises(fedcaptor.StateError, match=message):
            fedcaptor.simulate("demo", seeds=seeds, out=tmp_path, fresh=True, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {LOCK}


def _seed_of(folder: Path) -> int:
    """Give the folder's parent a link by which it is that seed's of a sweep."""
    (folder.parent / "seed-9").symlink_to(folder)
    return 9


def test_the_command_refuses_before_anything_heavy_is_loaded(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    code = (
        "import sys; from fedcaptor.cli.main import app\n"
        f"try: app(['simulate', 'demo', '--fresh', '--out', {str(tmp_path)!r}])\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print([name for name in ('torch', 'flwr', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    said, heavy = done.stdout.splitlines()
    assert said.startswith(f"StateError {tmp_path} is in use by process {holder.pid} on ")
    assert heavy == "[]"


def test_the_lock_of_a_killed_process_is_taken_over_with_a_note(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    refuse_if_in_use(tmp_path)
    notes: list[str] = []
    with locked(tmp_path, notes.append):
        pass
    assert [f"process {holder.pid} on " in note and "taken over" in note for note in notes] == [True]


def test_a_lock_is_released_at_the_end_and_on_errors(tmp_path: Path) -> None:
    notes: list[str] = []
    start = time.monotonic()
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), locked(tmp_path, notes.append):
            raise error
    refuse_if_in_use(tmp_path)
    assert notes == []
    assert time.monotonic() - start < 1  # nobody was waited for


def test_a_look_at_a_free_folder_leaves_no_trace(tmp_path: Path) -> None:
    refuse_if_in_use(tmp_path / "new", "0..1")
    assert list(tmp_path.iterdir()) == []


def test_removing_a_run_keeps_the_lock_that_is_held(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "phones" / "000000").mkdir(parents=True)
    with locked(tmp_path):
        remove_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    remove_run(tmp_path)  # a folder with a lock alone holds nothing else than a run
