"""Measure one command that brings a fresh device to its first contribution, under emulation.

    python -m tests.android.first_contribution

A run waits for two phones. One has the client and runs; the other is empty. Printed are the seconds from the command's
begin to its end, and to the first reply to a masked sum that the server has.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.android.fleet import BUNDLE, SETTINGS, attached_fleet, fedcaptor, first_reply, run_of

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, attached_fleet(Path(folder), SETTINGS) as fleet:
        fleet.lay(1)
        push = ("push", fleet.deployment.root, "--cache", BUNDLE, "--demo", "--start")
        fleet.say(*push, numbers=(1,))
        with run_of(fleet, "first") as run:
            begun = time.monotonic()
            (pushed,) = fleet.say(*push, numbers=(0,))
            print(f"{pushed['said']}: {time.monotonic() - begun:.0f} s", flush=True)
            first_reply(fleet, "first", run)
            print(f"the first masked reply is at the server: {time.monotonic() - begun:.0f} s", flush=True)
            fedcaptor("deploy", "down", fleet.deployment.root)
