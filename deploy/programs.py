"""Find programs that are not Python: the front, Prometheus and Alertmanager."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from fedcaptor.common.assets import checkout


def find(name: str) -> Path | None:
    """Return the program of this name on PATH, where Debian has services, or in a checkout's `.tools`.

    `make tools` unpacks Debian's packages there, for machines where nothing may be installed.
    """
    here = checkout()
    unpacked = [here / ".tools" / "usr" / folder for folder in ("bin", "sbin")] if here else []
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", *map(str, unpacked)]
    found = shutil.which(name, path=os.pathsep.join(folders))
    return Path(found).absolute() if found else None


def ours(name: str) -> Path:
    """Return a command that is installed beside the Python that runs, such as `fedcaptor` or `flower-superlink`."""
    return Path(sys.executable).parent / name
