"""Files are replaced whole, and what a kill leaves is found again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedcaptor.common.errors import ConfigError
from fedcaptor.common.files import check_writable, clear_leftovers, replacing

KILLED = """
import os, signal, sys
from pathlib import Path
from fedcaptor.common.files import replacing
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


def test_where_nothing_can_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "a.json")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"a\.json cannot be written \(.+\): choose another place"):
        check_writable(tmp_path / "file" / "a.json")
    with pytest.raises(ConfigError, match="new is a folder: name a file in it"):
        check_writable(tmp_path / "new")


CUT_SHORT = """
import resource, signal, sys
from pathlib import Path
import numpy as np
{imports}
path, tensors = Path(sys.argv[1]), {{"a": np.zeros(100_000, np.float16)}}
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
{write}
"""
WRITERS = {
    "weights": ("from common.weights_file import save_state", "save_state(path, tensors, {})"),
    "moments": (
        "from common.moments import ClassMoments",
        "ClassMoments(images=tensors['a'], inputs={}, gradients={}, digest='').save(path)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_left_of_half_written_tensors_is_found(writer: str, tmp_path: Path) -> None:
    imports, write = WRITERS[writer]
    path = tmp_path / "file.safetensors"
    code = CUT_SHORT.format(imports=imports, write=write)
    killed = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert killed.returncode == -signal.SIGXFSZ  # in the middle of the write
    (left,) = tmp_path.iterdir()
    assert clear_leftovers(path) == [left]


def test_a_private_file_is_so_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    with replacing(path, private=True) as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o600
        temporary.write_text("mine")
    assert path.stat().st_mode & 0o777 == 0o600
