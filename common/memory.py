"""The peak memory of this process."""

from __future__ import annotations

from pathlib import Path


def peak_rss() -> int:
    """Bytes that were resident at most since the process began.

    On Linux `getrusage` includes the peak of the process that started this one, so the kernel's own figure is read.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
