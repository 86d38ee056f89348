"""A real SuperLink with TLS and two authenticated SuperNodes on loopback end with two personalised phones.

This is the way of labs: a SuperNode runs what the SuperLink sends. `test_resident_phones` has that of devices.
"""

import json
import tomllib

import pytest

from benchmarks.deployment import Fleet, free_port, registered_key, start_run, start_superlink, write_images
from fedcaptor.common.assets import asset
from fedcaptor.server.journal import Journal
from fedcaptor.simulations.runner import SHIPPED

pytestmark = pytest.mark.timeout(900)

OWNERS = ((0, 1), (5, 7, 9))  # classes of each phone
CONFIG = """
[privacy]
noise = false
min_cohort = 2
dropout = 0
corrupted = 0
[testing]
small_cohorts = true
[clusters]
iterations = 1
[scores]
enabled = false
[visualise]
enabled = false
[planner]
tolerance = 0
[personal]
ladder = [0.3, 0.5, 0.8]
[delivery]
answer_seconds = 8
[rounds]
deadline = 120
"""


@pytest.fixture
def fleet(tmp_path):
    running = Fleet(tmp_path)
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.long
def test_two_phones_behind_a_tls_superlink_end_with_submodels_of_their_own(fleet, tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    port, ca = start_superlink(fleet), tmp_path / "ca.pem"
    for number, classes in enumerate(OWNERS):
        phone, key = tmp_path / f"phone{number}", registered_key(fleet, f"node{number}")
        write_images(phone / "images", classes)
        settings = {
            "folder": phone / "own",
            "images": phone / "images",
            "weights": SHIPPED,
            "model": "small-cnn",
            "input-shape": "1x28x28",
            "config": tmp_path / "config.toml",
        }
        fleet.start(
            "flower-supernode", "--superlink", f"localhost:{port}", "--root-certificates", ca,
            "--auth-supernode-private-key", key, "--host", "127.0.0.1", "--port", free_port(),
            "--node-config", " ".join(f'{name}="{value}"' for name, value in settings.items()), log=f"node{number}",
        )  # fmt: skip

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
    assert phases == {(0, "nodes"), *((1, name) for name in ("usage-0", "usage-1", "plans", "deliver", "outcome-0"))}

    fleet.stop()
    assert not fleet.left()


def test_the_app_names_installed_code_only():
    app = tomllib.loads(asset("deploy/flower-app/pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["components"] == {
        "serverapp": "fedcaptor.server.app:app",
        "clientapp": "fedcaptor.client.app:app",
    }
