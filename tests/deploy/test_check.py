"""`fedcaptor deploy check` finds what is wrong, and says what to do about it."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fedcaptor.deploy.certificates import make_server_certificate
from fedcaptor.deploy.check import Finding, check
from fedcaptor.deploy.folder import Deployment
from fedcaptor.server.journal import Journal

pytestmark = pytest.mark.slow


def bad(deployment: Deployment) -> list[Finding]:
    return [finding for finding in check(deployment) if finding.level == "error"]


def test_a_new_deployment_has_no_errors_and_every_warning_has_a_remedy(deployment: Deployment) -> None:
    found = check(deployment)
    assert not bad(deployment)
    assert {"certificates", "keys", "weights", "services", "phones", "disk", "versions"} <= {f.check for f in found}
    assert all(finding.remedy for finding in found if finding.level != "ok")


def expired(deployment: Deployment) -> None:
    files = deployment.certificate, deployment.certificate_key, deployment.authority, deployment.authority_key
    make_server_certificate("localhost", *files, days=-0.01)


def for_another_host(deployment: Deployment) -> None:
    files = deployment.certificate, deployment.certificate_key, deployment.authority, deployment.authority_key
    text = deployment.description.read_text().replace('host = "localhost"', 'host = "phones.example.org"')
    make_server_certificate("localhost", *files)
    deployment.description.write_text(text)


def clock_went_back(deployment: Deployment) -> None:
    file = deployment.logs / "superlink.log"
    file.touch()
    os.utime(file, (time.time() + 3600,) * 2)


def readable_key(deployment: Deployment) -> None:
    deployment.operator_key.chmod(0o644)


def other_weights(deployment: Deployment) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(deployment.weights)
    name = next(iter(tensors))
    tensors[name] = np.asarray(tensors[name] + 1)
    save_file(tensors, deployment.phones / "phone-02" / "base.safetensors")


def damaged_database(deployment: Deployment) -> None:
    path = deployment.runs / "run-0001" / "state.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE t (x)")
        database.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 100)
        database.commit()
    content = bytearray(path.read_bytes())
    content[4096:12_288] = b"\xff" * 8192
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "name", "words"),
    [
        (expired, "certificates", "valid for -0 days"),
        (for_another_host, "certificates", "not for phones.example.org"),
        (clock_went_back, "clock", "60 minutes behind"),
        (readable_key, "keys", "can be read by others"),
        (other_weights, "weights", "phone-02"),
        (damaged_database, "database", "is damaged"),
    ],
)
def test_what_is_wrong_is_found(
    deployment: Deployment, spoil: Callable[[Deployment], None], name: str, words: str
) -> None:
    spoil(deployment)
    (finding,) = bad(Deployment.open(deployment.root))
    assert finding.check == name
    assert words in finding.text
    assert finding.remedy


def test_a_stranger_on_a_port_is_found(deployment: Deployment) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as stranger:
        port = stranger.getsockname()[1]
        text = deployment.description.read_text()
        taken = f"prometheus_port = {deployment.settings.prometheus_port}"
        deployment.description.write_text(text.replace(taken, f"prometheus_port = {port}"))
        (finding,) = bad(Deployment.open(deployment.root))
    assert finding.text == f"{port} is taken by another process"
    assert "deployment.prometheus_port" in finding.remedy


def test_a_look_at_the_state_database_leaves_it_to_the_run(deployment: Deployment, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'state.db'}"
    deployment.environment_file.write_text(f"FEDCAPTOR_STATE={url}\n")
    assert not bad(deployment)
    Journal(url, "a" * 64).close()
    assert not bad(deployment)
    deployment.environment_file.write_text(f"FEDCAPTOR_STATE=sqlite:///{tmp_path}/missing/state.db\n")
    (finding,) = bad(deployment)
    assert "does not answer" in finding.text
