"""Ten phones through the front of a real deployment, and everybody who should not come through it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import httpx
import psutil
import pytest
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from benchmarks.deployment import free_port
from fedcaptor.client.fleet import connected
from fedcaptor.client.node_key import make_node_key, node_key
from fedcaptor.common.errors import LinkError
from fedcaptor.deploy import processes
from fedcaptor.deploy.create import Wanted, create
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.processes import down, processes_of, status
from fedcaptor.deploy.programs import ours
from fedcaptor.deploy.superlink import der_of
from tests.programs import program

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

PHONES = 10


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    program("nginx")
    folder = tmp_path_factory.mktemp("deployment") / "own"
    made = create(folder, Wanted(PHONES, port=free_port(), demo=True, overrides=("personal.ladder=[0.3,0.5,0.8]",)))
    try:
        command("up", made)
        yield made
    finally:
        down(made, print)
        assert not processes_of(made)


def command(name: str, deployment: Deployment, *more: str) -> str:
    """What `fedcaptor deploy NAME DIR` says; it must end with 0."""
    words = [ours("fedcaptor"), "deploy", name, deployment.root, *more]
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr + logs(deployment)
    return found.stdout + found.stderr


def logs(deployment: Deployment) -> str:
    return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-2000:]}" for p in deployment.logs.glob("*.log"))


def front_log(deployment: Deployment) -> str:
    return (deployment.logs / "front.log").read_text()


def context(deployment: Deployment) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=deployment.roots)


def address(deployment: Deployment) -> str:
    return f"localhost:{deployment.settings.port}"


def until(holds, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < end:
        time.sleep(0.1)
    return bool(found)


def test_an_outsider_with_the_ca_file_and_a_phones_key_reaches_no_control(deployment: Deployment) -> None:
    """What was possible before there was a front: to submit code, to list nodes, to register a key of one's own."""
    client = ControlHttpClient.from_server_address(
        address(deployment),
        False,
        deployment.roots.read_bytes(),
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )
    stolen = der_of((deployment.enrolled / "phone-01.pub").read_bytes(), "phone-01")
    with client:
        for call, request in (
            (client.StartRun, StartRunRequest()),
            (client.ListNodes, ListNodesRequest()),
            (client.RegisterNode, RegisterNodeRequest(public_key=stolen)),
        ):
            with pytest.raises(httpx.HTTPStatusError) as caught:
                call(request)
            assert caught.value.response.status_code == 404
    with httpx.Client(verify=context(deployment)) as plain:
        for path in (
            "/v1/control/start-run",
            "/v1/runtime/push-messages",
            "/v1/fleet/register-node",
            "/v1/fleet/get-fab",
            "/v1/fleet/../control/list-nodes",
            "/v1/fleet/pull-messages/../../control/list-nodes",
            "/v1/fleet/%2e%2e/control/list-nodes",
            "/health",
            "/",
        ):
            assert plain.post(f"https://{address(deployment)}{path}", content=b"").status_code == 404
    assert '"POST /v1/control/start-run HTTP/1.1" 404' in front_log(deployment)


def test_only_the_front_listens_beyond_loopback_where_it_is_told_to(deployment: Deployment) -> None:
    owned = {process.pid for process in processes_of(deployment)}
    listening = {
        connection.laddr
        for connection in psutil.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.pid in owned
    }
    assert deployment.settings.port in {place.port for place in listening}
    assert all(ip_address(place.ip.removeprefix("::ffff:")).is_loopback for place in listening)


def test_wrong_keys_and_authorities_are_refused(deployment: Deployment, tmp_path: Path) -> None:
    make_node_key(tmp_path / "stranger", tmp_path / "stranger.pub")
    stranger = node_key(tmp_path / "stranger")
    with (
        pytest.raises(LinkError, match="register this phone's public key"),
        connected(address(deployment), deployment.roots.read_bytes(), stranger, 1 << 20),
    ):
        pass
    with (
        pytest.raises(LinkError, match="give the operator's CA certificate"),
        connected(address(deployment), None, stranger, 1 << 20),
    ):
        pass
    assert '"POST /v1/fleet/activate-node HTTP/1.1" 4' in front_log(deployment)


def test_plain_text_is_refused(deployment: Deployment) -> None:
    with closing(socket.create_connection(("127.0.0.1", deployment.settings.port), timeout=10)) as talk:
        talk.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"plain HTTP request was sent to HTTPS port" in talk.recv(4096)
    assert until(lambda: '" 400' in front_log(deployment), 5)


def test_an_oversized_body_is_refused_before_it_is_read(deployment: Deployment) -> None:
    raw = socket.create_connection(("127.0.0.1", deployment.settings.port), timeout=20)
    with context(deployment).wrap_socket(raw, server_hostname="localhost") as talk:
        length = deployment.settings.max_body + 1
        head = f"POST /v1/fleet/push-object HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        talk.sendall(head.encode())
        assert b"413" in talk.recv(4096).splitlines()[0]
    assert until(lambda: '"POST /v1/fleet/push-object HTTP/1.1" 413' in front_log(deployment), 5)


def test_a_client_that_sends_slowly_is_cut_off(deployment: Deployment) -> None:
    raw = socket.create_connection(("127.0.0.1", deployment.settings.port), timeout=40)
    with context(deployment).wrap_socket(raw, server_hostname="localhost") as talk:
        talk.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nx")
        try:
            answer = talk.recv(4096)  # times out, and fails, unless the front ends the connection
        except (ConnectionError, ssl.SSLError):
            answer = b""
    assert answer == b"" or b" 408 " in answer.splitlines()[0]
    assert until(lambda: '"POST /v1/fleet/push-object HTTP/1.1" 408' in front_log(deployment), 5)


def test_a_second_up_says_what_runs(deployment: Deployment) -> None:
    said = command("up", deployment)
    for service in status(deployment):
        if service.state != "missing":
            assert f"{service.name} runs already" in said


def test_a_front_whose_master_was_killed_comes_back_and_leaves_nothing(deployment: Deployment) -> None:
    def front() -> processes.Running:
        return next(service for service in status(deployment) if service.name == "front")

    killed = front().pid
    workers = psutil.Process(killed).children()
    os.kill(killed, signal.SIGKILL)
    assert until(lambda: front().state == "running" and front().pid != killed, 30), front_log(deployment)
    with httpx.Client(verify=context(deployment), trust_env=False) as plain:
        assert plain.get(f"https://{address(deployment)}/").status_code == 404
    assert {worker.pid for worker in workers} <= {process.pid for process in processes_of(deployment)}


def test_ten_phones_end_with_submodels_of_their_own_and_a_killed_service_loses_nothing(deployment: Deployment) -> None:
    run = subprocess.Popen(
        [ours("fedcaptor"), "deploy", "run", deployment.root],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    journal = deployment.runs / "run-0001" / "state.db"
    assert until(journal.exists, 120), logs(deployment)
    time.sleep(5)
    superlink = next(service for service in status(deployment) if service.name == "superlink")
    os.kill(superlink.pid, signal.SIGKILL)
    said, _ = run.communicate(timeout=900)
    assert run.returncode == 0, said + logs(deployment)
    for folder in deployment.phone_folders():
        own = folder / "own"
        assert until((own / "outcome.json").exists, 120), logs(deployment)
        outcome = json.loads((own / "outcome.json").read_text())
        if outcome["plan"] is not None:
            file = own / outcome["file"]
            assert hashlib.sha256(file.read_bytes()).hexdigest() == outcome["digest"]
            assert file.stat().st_size < deployment.weights.stat().st_size
    plans = [json.loads((f / "own" / "outcome.json").read_text())["plan"] for f in deployment.phone_folders()]
    assert sum(plan is not None for plan in plans) >= PHONES - 1
    found = json.loads(command("status", deployment, "--json"))
    assert (found["run"]["status"], found["enrolled"]) == ("ended", PHONES)
    assert not [f for f in json.loads(command("check", deployment, "--json")) if f["level"] == "error"]


def test_prometheus_has_the_runs_figures_and_alertmanager_its_alerts(deployment: Deployment) -> None:
    for name in ("prometheus", "prometheus-alertmanager"):
        program(name)
    settings = deployment.settings

    def value(expression: str) -> float | None:
        url = f"http://127.0.0.1:{settings.prometheus_port}/api/v1/query"
        (found,) = httpx.get(url, params={"query": expression}, trust_env=False).json()["data"]["result"] or [None]
        return float(found["value"][1]) if found else None

    def alerts() -> set[str]:
        url = f"http://127.0.0.1:{settings.alertmanager_port}/api/v2/alerts"
        return {alert["labels"]["alertname"] for alert in httpx.get(url, trust_env=False).json()}

    assert until(lambda: value('fedcaptor_run_status{run="run-0001", status="ended"}') == 1, 60)
    assert 0 < (value('fedcaptor_fleet_macs_ratio{run="run-0001"}') or 0) < 1
    assert value("sum(fedcaptor_catalogue_sent_bytes_total)") > PHONES * deployment.weights.stat().st_size
    assert until(lambda: "NoiseOff" in alerts(), 120)  # a demonstration's sums have none
    pages = command("dashboard", deployment).split()
    assert len(pages) == 2
    assert all("run-0001" in Path(page).read_text() for page in pages)


def test_a_run_that_cannot_succeed_ends_with_an_error(deployment: Deployment) -> None:
    text = deployment.description.read_text()
    deployment.description.write_text(text.replace("small_cohorts = true", "small_cohorts = false"))
    try:
        words = [ours("fedcaptor"), "deploy", "run", deployment.root, "--name", "impossible"]
        found = subprocess.run(words, capture_output=True, text=True)
    finally:
        deployment.description.write_text(text)
    assert found.returncode != 0
    assert "privacy.noise is false, real phones need noise" in found.stdout + found.stderr


def test_nothing_is_left_when_even_the_supervisor_was_killed(deployment: Deployment) -> None:
    pid = int((deployment.state / "supervisor.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 10)
    assert processes_of(deployment)
    said = command("up", deployment)
    assert "processes that nobody supervises" in said
    command("down", deployment)
    assert not processes_of(deployment)
    assert {service.state for service in status(deployment)} <= {"down", "missing"}
