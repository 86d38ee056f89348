"""What Flower's processes are started with, and how a run's log tells a failure."""

from __future__ import annotations

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "OMP_NUM_THREADS": "1",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}
"""Environment variables that keep them from talking to anybody outside, from looking for a proxy on loopback, and from
a thread for each core.
"""
FAILED = "the run failed: "
"""Begins the log's line of an error that starting the run again would not mend."""
POSTPONED = "the round is postponed: "
"""Begins that of a round that can begin later, when the run is started again."""
