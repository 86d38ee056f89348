"""A deployment's folder is made whole from one description, and private keys stay private."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from fedcaptor.client.node_key import make_node_key
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, PrivacyError
from fedcaptor.deploy import enrolment
from fedcaptor.deploy.certificates import days_left, make_authority, make_server_certificate, names_of, read_certificate
from fedcaptor.deploy.create import Wanted, create, issue_certificate
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.processes import environment_given
from tests.programs import program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return create(tmp_path_factory.mktemp("deployment") / "own", Wanted(4, demo=True))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_private_keys_are_their_owners_alone_and_no_phone_gets_the_servers(made: Deployment) -> None:
    assert mode(made.secrets) == 0o700
    assert {mode(path) for path in made.secrets.iterdir()} == {0o600}
    secrets = [path.read_bytes() for path in made.secrets.iterdir()]
    for folder in made.phone_folders():
        assert mode(folder / "node.key") == 0o600
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert not [path for path in files if path.read_bytes() in secrets]
        private = [path.name for path in files if b"PRIVATE KEY" in path.read_bytes()]
        assert private == ["node.key"]


def test_every_phone_has_a_key_of_its_own_and_all_that_its_file_names(made: Deployment) -> None:
    keys = made.enrolled_keys()
    assert list(keys) == ["phone-01", "phone-02", "phone-03", "phone-04"]
    assert len(set(keys.values())) == 4
    for folder in made.phone_folders():
        device = load_config(folder / "phone.toml").device
        assert device.superlink == "localhost:8443"
        assert len(device.operator) == 64
        for name in (device.root_certificates, device.key):
            assert (folder / name).is_file()
        assert device.catalogue == device.superlink  # from which it fetches its weights and graph
        assert len(list((folder / device.images).iterdir())) >= 80


def test_the_certificate_is_for_the_host_and_loopback(tmp_path: Path) -> None:
    make_authority(tmp_path / "ca.pem", tmp_path / "ca.key")
    for host in ("phones.example.org", "192.0.2.7"):
        files = tmp_path / "server.pem", tmp_path / "server.key"
        make_server_certificate(host, *files, tmp_path / "ca.pem", tmp_path / "ca.key")
        certificate = read_certificate(files[0])
        assert names_of(certificate) == {host, "localhost", "127.0.0.1", "::1"}
        assert 396 < days_left(certificate) <= 397
        assert days_left(certificate, datetime.now(UTC) + timedelta(days=400)) < 0
        certificate.verify_directly_issued_by(read_certificate(tmp_path / "ca.pem"))


def test_too_few_phones_for_the_promise_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="min_cohort"):
        create(tmp_path / "own", Wanted(10))
    assert not (tmp_path / "own").exists()


def test_a_second_making_is_refused_and_an_interrupted_one_keeps_its_keys(made: Deployment, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a deployment already"):
        create(made.root, Wanted(4, demo=True))
    half = tmp_path / "half"
    shutil.copytree(made.root, half)
    (half / "deployment.toml").unlink()
    again = create(half, Wanted(4, demo=True))
    assert again.authority.read_bytes() == made.authority.read_bytes()
    assert again.enrolled_keys() == made.enrolled_keys()


def test_what_an_interruption_left_is_no_deployment_and_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Wanted(2, demo=True)
    with monkeypatch.context() as patched:
        patched.setattr("fedcaptor.deploy.create.render", lambda deployment: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            create(tmp_path / "own", wanted)
    keys = Deployment(tmp_path / "own").enrolled_keys()
    with pytest.raises(ConfigError, match="fedcaptor deploy init"):
        Deployment.open(tmp_path / "own")
    assert create(tmp_path / "own", wanted).enrolled_keys() == keys


def test_a_folder_without_a_deployment_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fedcaptor deploy init"):
        Deployment.open(tmp_path)


def test_the_operators_own_certificate_must_fit_the_host(made: Deployment, tmp_path: Path) -> None:
    own = {"certificate": made.certificate, "certificate_key": made.certificate_key, "roots": made.authority}
    with pytest.raises(ConfigError, match=r"not for phones\.example\.org"):
        create(tmp_path / "own", Wanted(4, host="phones.example.org", demo=True, **own))
    with pytest.raises(ConfigError, match="give all three"):
        create(tmp_path / "own", Wanted(4, demo=True, certificate=made.certificate))


def test_a_renewed_certificate_is_for_the_host_of_the_description(deployment: Deployment) -> None:
    text = deployment.description.read_text().replace('host = "localhost"', 'host = "phones.example.org"')
    deployment.description.write_text(text)
    changed = Deployment.open(deployment.root)
    issue_certificate(changed)
    assert "phones.example.org" in names_of(read_certificate(changed.certificate))
    assert mode(changed.certificate_key) == 0o600


def test_phones_are_let_in_by_their_public_keys(deployment: Deployment, tmp_path: Path) -> None:
    make_node_key(tmp_path / "new", tmp_path / "new.pub")
    folder = enrolment.enrol(deployment, "later", tmp_path / "new.pub")
    assert "later" in deployment.enrolled_keys()
    assert (folder / "phone.toml").is_file()
    assert not (folder / "node.key").exists()  # it is the phone's own
    with pytest.raises(ConfigError, match="enrolled as later already"):
        enrolment.enrol(deployment, "again", tmp_path / "new.pub")
    with pytest.raises(ConfigError, match="no public ECDSA key"):
        enrolment.enrol(deployment, "private", tmp_path / "new")
    with pytest.raises(ConfigError, match="must be letters"):
        enrolment.enrol(deployment, "../up", tmp_path / "new.pub")
    enrolment.revoke(deployment, "later")
    assert "later" not in deployment.enrolled_keys()
    with pytest.raises(ConfigError, match="no phone 'later' is enrolled"):
        enrolment.revoke(deployment, "later")


def test_the_fronts_configuration_is_valid(made: Deployment) -> None:
    command = [program("nginx"), "-t", "-e", "stderr", "-c", made.services / "nginx.conf"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_prometheus_and_alertmanager_accept_their_configuration(made: Deployment) -> None:
    for tool, what, file in (("promtool", "config", "prometheus.yml"), ("amtool", "", "alertmanager.yml")):
        words = ["check", what] if what else ["check-config"]
        found = subprocess.run([program(tool), *words, made.services / file], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout + found.stderr


def test_units_start_the_same_commands_as_up(made: Deployment) -> None:
    supervised = (made.services / "supervisord.conf").read_text()
    units = list((made.services / "systemd").glob("*.service"))
    assert {"fedcaptor-superlink.service", "fedcaptor-front.service"} <= {unit.name for unit in units}
    for unit in units:
        command = next(line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
        if Path(command.removeprefix("ExecStart=").split()[0]).is_file():
            assert command.removeprefix("ExecStart=") in supervised


def test_the_compose_file_has_the_same_services(made: Deployment) -> None:
    services = yaml.safe_load((made.services / "compose.yaml").read_text())["services"]
    units = {path.stem.removeprefix("fedcaptor-") for path in (made.services / "systemd").glob("*.service")}
    assert set(services) == units
    assert services["superlink"]["command"][0] == "flower-superlink"
    assert services["superlink"]["environment"]["FEDCAPTOR_SIGNING_KEY"] == str(made.operator_key)
    assert {service["network_mode"] for service in services.values()} == {"host"}


def test_units_are_valid(made: Deployment) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd is not installed")
    units = list((made.services / "systemd").glob("*.service"))
    found = subprocess.run([tool, "verify", *units], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    assert "Unknown" not in found.stderr, found.stderr


def test_the_environment_file_is_read_and_a_bad_line_named(deployment: Deployment) -> None:
    deployment.environment_file.write_text("# a remark\nFEDCAPTOR_STATE=postgresql+psycopg://a:b=c@/x\n\n")
    assert environment_given(deployment) == {"FEDCAPTOR_STATE": "postgresql+psycopg://a:b=c@/x"}
    deployment.environment_file.write_text("FEDCAPTOR_STATE\n")
    with pytest.raises(ConfigError, match="line 1 is not NAME=VALUE"):
        environment_given(deployment)
