"""Files are replaced whole, and what a kill leaves is found again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from common.files import clear_leftovers

KILLED = """
import os, signal, sys
from pathlib import Path
from common.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    path, other = tmp_path / "note.json", tmp_path / "other.json"
    path.write_text("whole")
    for target in (path, other):
        assert subprocess.run([sys.executable, "-c", KILLED, target], check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "whole"
    (left,) = clear_leftovers(path)
    assert not left.exists()
    assert clear_leftovers(path) == []
    assert len(list(tmp_path.iterdir())) == 2
    assert len(clear_leftovers(other)) == 1
