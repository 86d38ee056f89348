"""A deployment's folder is made whole from one description, and private keys stay private."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from dockerfile_parse import DockerfileParser

from fedcaptor.client.node_key import make_node_key
from fedcaptor.common.assets import asset
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, PrivacyError
from fedcaptor.deploy import enrolment, processes
from fedcaptor.deploy.certificates import days_left, make_authority, make_server_certificate, names_of, read_certificate
from fedcaptor.deploy.create import Wanted, create, issue_certificate
from fedcaptor.deploy.environment import read_environment
from fedcaptor.deploy.folder import KEY, Deployment
from fedcaptor.deploy.render import render
from fedcaptor.deploy.services import services_of
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
    for tool, what, file in (("promtool", "config", "prometheus/prometheus.yml"), ("amtool", "", "alertmanager.yml")):
        words = ["check", what] if what else ["check-config"]
        found = subprocess.run([program(tool), *words, made.services / file], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout + found.stderr


def test_a_service_is_started_again_when_its_configuration_has_changed(deployment: Deployment) -> None:
    def sections(deployment: Deployment) -> dict[str, str]:
        render(deployment)
        found = (deployment.services / "supervisord.conf").read_text().split("\n[program:")[1:]
        return {name: section for name, _, section in (each.partition("]") for each in found)}

    program("nginx")  # a front that cannot be started has no section
    before = sections(deployment)
    assert sections(deployment) == before
    changed = load_config(deployment.description, ["deployment.requests_per_second=7"])
    after = sections(Deployment(deployment.root, changed))
    assert [name for name in before if before[name] != after[name]] == ["front"]


def test_units_start_the_same_commands_as_up(made: Deployment) -> None:
    supervised = (made.services / "supervisord.conf").read_text()
    units = list((made.services / "systemd").glob("*.service"))
    assert {"fedcaptor-superlink.service", "fedcaptor-front.service"} <= {unit.name for unit in units}
    for unit in units:
        command = next(line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
        if Path(command.removeprefix("ExecStart=").split()[0]).is_file():
            assert command.removeprefix("ExecStart=") in supervised


def test_the_compose_file_has_the_same_services(made: Deployment) -> None:
    compose = yaml.safe_load((made.services / "compose.yaml").read_text())
    jsonschema.validate(compose, get_builtin_schema("vendor.compose-spec"))
    services = compose["services"]
    units = {path.stem.removeprefix("fedcaptor-") for path in (made.services / "systemd").glob("*.service")}
    assert set(services) == units
    assert services["superlink"]["command"][0] == "flower-superlink"
    assert services["superlink"]["environment"]["FEDCAPTOR_SIGNING_KEY"] == str(made.operator_key)
    assert {service["network_mode"] for service in services.values()} == {"host"}
    assert not any(str(asset("")) in str(service) for service in services.values())  # the image has no checkout


def test_services_that_a_container_runs_are_told_by_their_processes(
    made: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program has another path inside, and restarts leave a younger child with the same arguments."""
    superlink, began = services_of(made)[0], time.time() - 60

    def process(pid: int, create_time: float, *words: str) -> Any:
        return SimpleNamespace(pid=pid, cmdline=lambda: list(words), create_time=lambda: create_time)

    words = "/usr/bin/python3", "/usr/local/bin/flower-superlink", *superlink.command[1:]
    found = [process(8, began + 9, *words), process(7, began, *words), process(6, began, "nginx")]
    monkeypatch.setattr(processes, "processes_of", lambda deployment: found)
    states = {one.name: one for one in processes.status(made)}
    assert (states["superlink"].state, states["superlink"].pid) == ("running", 7)
    assert 60 <= states["superlink"].since < 600
    assert states["catalogue"].state == "down"


def test_phones_run_here_that_are_enrolled_and_have_their_key_here(deployment: Deployment) -> None:
    def here() -> list[str]:
        return [service.name for service in services_of(deployment) if service.phone]

    first, second, *others = deployment.phone_folders()
    names = [folder.name for folder in others]
    assert here() == [first.name, second.name, *names]
    (deployment.enrolled / f"{first.name}.pub").unlink()
    assert here() == [second.name, *names]
    (second / KEY).unlink()
    assert here() == names


def test_the_image_has_what_services_need(made: Deployment) -> None:
    file = io.BytesIO(asset("deploy/container/Dockerfile").read_bytes())
    steps = [step for step in DockerfileParser(fileobj=file).structure if step["instruction"] != "COMMENT"]
    assert [step["instruction"] for step in steps] == ["FROM", "RUN", "COPY", "RUN"]
    packages = {service.package for service in services_of(made)} - {""}
    assert packages <= set(steps[1]["value"].split())
    assert "'/source[deploy]'" in steps[3]["value"].split()
    ignored = asset("deploy/container/Dockerfile.dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)  # COPY would take gigabytes


def test_secrets_of_runs_are_the_superlinks_alone(made: Deployment) -> None:
    """The operator's key and the variables of `secrets/environment`, however services are started."""
    secret = str(made.environment_file), "FEDCAPTOR_SIGNING_KEY"
    programs = (made.services / "supervisord.conf").read_text().split("\n[program:")
    units = (made.services / "systemd").glob("*.service")
    containers = yaml.safe_load((made.services / "compose.yaml").read_text())["services"]
    told = {
        **{program.partition("]")[0]: program for program in programs},
        **{unit.stem.replace("fedcaptor-", "unit "): unit.read_text() for unit in units},
        **{f"container {name}": str(service) for name, service in containers.items()},
    }
    assert {"phone-01", "unit front", "container catalogue"} <= set(told)
    for word in secret:
        assert [name for name, text in told.items() if word in text] == [
            "superlink",
            "unit superlink",
            "container superlink",
        ]


def test_units_are_valid(made: Deployment) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd is not installed")
    units = list((made.services / "systemd").glob("*.service"))
    found = subprocess.run([tool, "verify", *units], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    assert "Unknown" not in found.stderr, found.stderr


def test_the_environment_file_is_read_and_a_bad_line_named(deployment: Deployment) -> None:
    deployment.environment_file.write_text("# a remark\nFEDCAPTOR_STATE=postgresql+psycopg://a:b=c@/x\n\n")
    assert read_environment(deployment.environment_file) == {"FEDCAPTOR_STATE": "postgresql+psycopg://a:b=c@/x"}
    command = sys.executable, "-m", "fedcaptor.deploy.environment", deployment.environment_file
    found = subprocess.run([*command, "/usr/bin/env"], capture_output=True, text=True, check=True)
    assert "FEDCAPTOR_STATE=postgresql+psycopg://a:b=c@/x\n" in found.stdout
    deployment.environment_file.write_text("FEDCAPTOR_STATE\n")
    with pytest.raises(ConfigError, match="line 1 is not NAME=VALUE"):
        read_environment(deployment.environment_file)
