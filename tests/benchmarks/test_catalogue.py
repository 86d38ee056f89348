"""The catalogue's rows are of real processes, and updates of real downloads."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import catalogue
from benchmarks.catalogue import SERVERS, Catalogue, updated
from fedcaptor.deploy.programs import find

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_an_update_costs_what_changed(tmp_path: Path, one_thread: None) -> None:
    share = {}
    for update in ("output layer", "last three layers", "submodel"):
        row = updated(tmp_path, "resnet20", update, 0.3, seed=0)
        share[update] = row["delta_bytes"] / row["whole_bytes"]
    assert share["output layer"] < 0.1 < share["last three layers"] < 0.6
    assert share["submodel"] > 0.9


@pytest.mark.long
def test_servers_are_measured_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "SETTLED_SECONDS", 0.5)
    benchmark = Catalogue(models="resnet20", small=1000, large=8 << 20, downloads=8, parallel=2, connections=3)
    with benchmark.measuring(lambda name, done, total: None) as measure:
        rows = {server: measure({"server": server}) for server in SERVERS}
    present = SERVERS if find("nginx") else ("catalogue",)
    assert {server for server, row in rows.items() if row} == set(present)
    for server in present:
        assert rows[server]["downloads_per_second"] > 0
        assert rows[server]["large_downloads_per_second"] > 0
