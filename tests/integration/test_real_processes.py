"""A real SuperLink with TLS and two authenticated SuperNodes on loopback end with two personalised phones.

This is the way of labs: a SuperNode runs what the SuperLink sends. `test_resident_phones` has that of devices.
"""

import json
import tomllib

import pytest

from benchmarks.deployment import Fleet, registered_key, small_run, start_phone, start_run, start_superlink, write_phone
from fedcaptor.common.assets import asset
from fedcaptor.server.journal import Journal
from fedcaptor.simulations.runner import SHIPPED

pytestmark = pytest.mark.timeout(900)

OWNERS = ((0, 1), (5, 7, 9))  # classes of each phone
CONFIG = small_run(
    len(OWNERS),
    """
[scores]
enabled = false
[personal]
ladder = [0.3, 0.5, 0.8]
[delivery]
answer_seconds = 8
[rounds]
deadline = 120
""",
)


@pytest.fixture
def fleet(tmp_path):
    running = Fleet(tmp_path)
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.long
def test_two_phones_behind_a_tls_superlink_end_with_submodels_of_their_own(fleet, tmp_path):
    port = start_superlink(fleet)
    for number, classes in enumerate(OWNERS):
        key = registered_key(fleet, f"node{number}")
        file = write_phone(tmp_path / f"phone{number}", port, key, classes, CONFIG, "torch")
        start_phone(fleet, "supernode", file, number, port, key)

    server = tmp_path / "server"
    assert start_run(fleet, CONFIG, 2).wait(800) == 0, fleet.logs()

    for number, classes in enumerate(OWNERS):
        folder = tmp_path / f"phone{number}" / "own"
        assert (folder / "outcome.json").exists(), fleet.logs()
        outcome = json.loads((folder / "outcome.json").read_text())
        assert outcome["plan"] is not None
        assert set(outcome["classes"]) & set(classes)
        assert outcome["macs"] < 1
        assert (folder / "submodel.safetensors").stat().st_size < SHIPPED.stat().st_size
    snapshot = json.loads((server / "snapshot.json").read_text())
    assert (snapshot["status"], snapshot["phones"], snapshot["simulated"]) == ("ended", 2, False)
    assert snapshot["marks"] == ["noise off", "small cohorts"]
    journal = Journal(f"sqlite:///{server / 'state.db'}", snapshot["run"])
    phases = set(journal.seconds())
    journal.close()
    names = ("nodes", "begin", "usage-0", "usage-1", "plans", "deliver", "outcome-0", "end")
    assert phases == {(1, name) for name in names}

    fleet.stop()
    assert not fleet.left()


def test_the_app_names_installed_code_only():
    app = tomllib.loads(asset("deploy/flower-app/pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["components"] == {
        "serverapp": "fedcaptor.server.app:app",
        "clientapp": "fedcaptor.client.app:app",
    }
