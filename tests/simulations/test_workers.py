"""How many phones answer at the same time changes no figure, and cores decide it where nobody does."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib import cpu_count

import fedcaptor
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, PrivacyError
from fedcaptor.server.journal import Journal
from fedcaptor.simulations.local_grid import VirtualClock
from fedcaptor.simulations.runner import build_world, local_grid, run_rounds, simulate
from tests import tiny

OF_ONE_RUN = ("seconds", "peak_rss_bytes", "provenance")


def phases(folder: Path) -> dict[tuple[int, str], Any]:
    run = json.loads((folder / "snapshot.json").read_text())["run"]
    journal = Journal(f"sqlite:///{folder / 'state.db'}", run)
    try:
        return {key: journal.stored(*key) for key in journal.seconds()}
    finally:
        journal.close()


@pytest.mark.long
def test_figures_do_not_depend_on_how_many_phones_answer_at_once(bars: tuple[Path, Path], tmp_path: Path) -> None:
    """With noise, and with phones that fail."""
    more = "faults.dropout=0.02", "faults.malformed=0.02", "privacy.dropout=0.2"
    config = load_config(None, tiny.overrides(*bars, *more))
    found = {}
    for workers in (1, 2, 4):
        folder = tmp_path / str(workers)
        summary = simulate(config, folder, workers=workers)
        summary = {name: value for name, value in summary.items() if name not in OF_ONE_RUN}
        found[workers] = summary, phases(folder), fedcaptor.Run.open(folder).phones.to_csv()
    first, stored, rows = found.pop(1)
    assert {name for _, name in stored} >= {"usage-0", "scores-0", "deliver", "outcome-0"}
    assert first["faults"]["dropped"] > 0
    for other, others_stored, others_rows in found.values():
        assert other == first
        assert others_rows == rows
        assert others_stored.keys() == stored.keys()
        for key, (outcome, tensors) in stored.items():
            assert others_stored[key][0] == outcome
            for name, value in tensors.items():
                np.testing.assert_array_equal(others_stored[key][1][name], value)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [None, 3])
def test_as_many_phones_answer_at_once_as_there_are_cores(
    workers: int | None, bars: tuple[Path, Path], tmp_path: Path
) -> None:
    world, clock, names = build_world(load_config(None, tiny.overrides(*bars)), tmp_path), VirtualClock(), set()
    expected = workers or cpu_count()
    together = threading.Barrier(expected, timeout=60)

    def answer(message: Any, context: Any) -> Any:
        if len(names) < expected:  # the first ones wait for one another
            names.add(threading.get_ident())
            together.wait()
        raise RuntimeError("this phone answers nothing")

    with pytest.raises(PrivacyError):
        run_rounds(world, local_grid(world, clock, lambda app: answer, workers), lambda *_: None, clock)
    assert len(names) == expected


@pytest.mark.parametrize("how", [{"workers": 0}, {"workers": 2, "engine": "ray"}])
def test_workers_are_of_the_engine_local_and_at_least_one(how: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"workers is \d, must be at least 1, and is for the engine local alone"):
        fedcaptor.simulate("demo", out=tmp_path, progress=False, **how)
    assert list(tmp_path.iterdir()) == []
