"""Fuzz one target, or write the corpus: `python -m tests.fuzz --help`."""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from pathlib import Path

from tests.fuzz.targets import NAMES, target

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path("runs/fuzz")
RESIDENT, RESERVED = 512, 2048
"""Megabytes that the process may use, and that an input may ask for: beyond the latter it meets MemoryError, which no
target lets pass.
"""
LIBRARIES = ("fedcaptor", "tomllib", "zipfile", "PIL")
"""What coverage guides through, besides the target."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=NAMES, help="the target; without one their names are printed")
    parser.add_argument("--seconds", type=int, default=60, help="how long, 60 by default")
    parser.add_argument("--write-corpus", action="store_true", help="write each target's valid inputs, then end")
    given = parser.parse_args()
    if given.write_corpus:
        write_corpus()
    elif given.target:
        fuzz(given.target, given.seconds)
    else:
        print(*NAMES)


def write_corpus() -> None:
    """Write every target's `seeds`; other files stay."""
    for name in NAMES:
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for seed, data in target(name).seeds().items():
            (folder / f"seed-{seed}").write_bytes(data)


def fuzz(name: str, seconds: int) -> None:
    """Look for an input that breaks the target. One that does is left in `runs/fuzz/`, and the process ends with 77."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install -e '.[attack]'")
    with atheris.instrument_imports(include=[*LIBRARIES, f"tests.fuzz.targets.{name}"]):
        one = target(name).one
    FOUND.mkdir(parents=True, exist_ok=True)
    limit_memory()
    with tempfile.TemporaryDirectory() as grown:
        limits = [f"-max_total_time={seconds}", "-timeout=10", f"-rss_limit_mb={RESIDENT}", "-max_len=8192"]
        options = [sys.argv[0], *limits, "-print_final_stats=1", f"-artifact_prefix={FOUND / name}-"]
        atheris.Setup([*options, grown, str(CORPUS / name)], lambda data: one(data) and None)
        atheris.Fuzz()


def limit_memory() -> None:
    """Leave the process `RESERVED` megabytes more of address space than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (RESERVED << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main()
