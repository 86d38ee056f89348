"""Dashboards: the files are what the code makes, and every expression has data on a live Prometheus."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import start_http_server

from fedcaptor.common.config import load_config
from fedcaptor.common.errors import ConfigError, StateError
from fedcaptor.server.catalogue.metrics import Metrics
from fedcaptor.server.exporter import start_exporter
from fedcaptor.server.panels import BOARDS, Query
from fedcaptor.simulations.report.board_page import Prometheus, filled, write_board_pages
from fedcaptor.simulations.runner import simulate
from tests import tiny
from tests.monitoring.test_rules import FOLDER, ROOT
from tests.programs import program

DEVICES = {"fedcaptor_phones_enrolled"}
"""Metrics that no simulation has: there is no register of enrolled phones."""
QUERIES = [
    pytest.param(query, id=f"{panel.title}-{number}")
    for board in BOARDS
    for panel in board.panels
    for number, query in enumerate(panel.queries)
    if not any(metric in query.expr for metric in DEVICES)
]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_the_files_are_what_the_code_makes(board: Any) -> None:
    grafana = pytest.importorskip("fedcaptor.server.grafana", reason="the extra dashboards is not installed")
    written = (FOLDER / "dashboards" / f"{board.uid}.json").read_text()
    assert written == grafana.json_of(board), "run `make docs` and commit what it wrote"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_grafanas_own_types_read_the_files_without_a_loss(board: Any) -> None:
    """The SDK's types are generated from Grafana's schema: what they do not know is lost, or an error."""
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="the extra dashboards is missing")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder").JSONEncoder
    pytest.importorskip("grafana_foundation_sdk.cog.plugins").register_default_plugins()
    found = json.loads((FOLDER / "dashboards" / f"{board.uid}.json").read_text())
    again = json.loads(encoder().encode(models.Dashboard.from_json(found)))
    assert again == found
    panels = [panel for panel in found["panels"] if panel["type"] != "row"]
    assert [panel["title"] for panel in panels] == [panel.title for panel in board.panels]
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def started(stack: ExitStack, command: list[Any], log: Path) -> subprocess.Popen[bytes]:
    """A process that ends with the test."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen([*map(str, command)], stdout=file, stderr=file, env=environment, cwd=log.parent)
    stack.callback(process.wait, 30)
    stack.callback(process.send_signal, signal.SIGKILL)
    return process


def catalogue(stack: ExitStack) -> int:
    """The catalogue's own counters, as after one read that was resumed; returns the port that they are served on."""
    metrics = Metrics()
    metrics.requests.labels("Read", "OK").inc()
    metrics.resumes.inc()
    metrics.sent.inc(1000)
    server, _ = start_http_server(0, "127.0.0.1", metrics.registry)
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    return int(server.server_address[1])


def certificate(folder: Path) -> Path:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=front"
    done = [*command.split(), "-keyout", folder / "front.key", "-out", folder / "front.pem"]
    subprocess.run(done, check=True, capture_output=True, timeout=60)
    return folder / "front.pem"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus with the configuration of a deployment, over a run that ended and one that is at work."""
    binary, folder = program("prometheus"), tmp_path_factory.mktemp("watched")
    data, weights = tiny.write(folder / "tiny")
    settings = tiny.overrides(data, weights, "population.phones=24", "faults.malformed=0.1", "privacy.dropout=0.3")
    settings = [*settings, "domain.enabled=true", "domain.iterations=1"]
    (folder / "runs").mkdir()
    simulate(load_config(None, settings), folder / "runs" / "spring")
    with ExitStack() as stack:
        overrides = [part for each in (*settings, "run.rounds=900", "run.seed=1") for part in ("--set", each)]
        command = [
            sys.executable,
            "-m",
            "fedcaptor.cli.main",
            "simulate",
            "--out",
            folder / "runs" / "autumn",
            *overrides,
        ]
        process = started(stack, command, folder / "simulation.log")
        exporter = stack.enter_context(start_exporter(folder / "runs", port=0, certificates=[certificate(folder)]))
        shutil.copytree(FOLDER, folder / "monitoring")
        config = folder / "monitoring" / "prometheus.yml"
        config.write_text(config.read_text().replace("15s", "1s"))
        for job, port in (("fedcaptor", exporter.port), ("catalogue", catalogue(stack))):
            targets = [{"targets": [f"127.0.0.1:{port}"]}]
            (folder / "monitoring" / "targets" / f"{job}.json").write_text(json.dumps(targets))
        address = f"127.0.0.1:{free_port()}"
        started(
            stack,
            [
                binary,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={address}",
            ],
            folder / "prometheus.log",
        )
        found = Prometheus(f"http://{address}")
        for expression in (
            'fedcaptor_phones_online{run="autumn"}',
            'rate(fedcaptor_server_cpu_seconds_total{run="autumn"}[1m])',
            "rate(fedcaptor_catalogue_failures_total[1m])",
            "run:fedcaptor_privacy_used:ratio",
        ):
            wait_for(found, expression, process, folder / "simulation.log")
        yield found


def wait_for(prometheus: Prometheus, expression: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once an expression has a value."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            if prometheus.ask("query", query=expression)["result"]:
                return
        except StateError:  # it is starting
            pass
        time.sleep(1)
    raise AssertionError(f"{expression} has no value; {log.read_text()[-2000:]}")


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("query", QUERIES)
def test_every_expression_has_data(prometheus: Prometheus, query: Query) -> None:
    end = time.time()
    assert prometheus.series(query, end - 60, end), filled(query.expr)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_run_at_work_and_one_that_ended_are_told_apart(prometheus: Prometheus) -> None:
    found = prometheus.ask("query", query="fedcaptor_run_status == 1")["result"]
    assert {one["metric"]["run"]: one["metric"]["status"] for one in found} == {"spring": "ended", "autumn": "running"}
    alerts = prometheus.ask("query", query='ALERTS{alertstate="firing", severity="critical"}')["result"]
    assert alerts == []


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_pages_show_every_panel(prometheus: Prometheus, tmp_path: Path) -> None:
    for path, board in zip(write_board_pages(tmp_path, prometheus, 0.1), BOARDS, strict=True):
        page = path.read_text()
        assert page.count('class="plot"') == len(board.panels)
        assert "No figures in this time" not in page


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_draw_and_fit(visit: Any, prometheus: Prometheus, tmp_path: Path, width: int) -> None:
    for path, board in zip(write_board_pages(tmp_path, prometheus, 0.1), BOARDS, strict=True):
        page = visit(path, width)
        assert page.locator("figure svg.main-svg").count() >= len(board.panels)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_wrong_expression_is_named(prometheus: Prometheus) -> None:
    with pytest.raises(StateError, match=r"refuses 'sum\('.*parse error"):
        prometheus.series(Query("sum("), 0, 1)


def test_an_address_that_is_no_prometheus() -> None:
    with pytest.raises(ConfigError, match="must begin with http"):
        Prometheus("file:///etc/passwd")
    with pytest.raises(StateError, match="does not answer as Prometheus does"):
        Prometheus(f"http://127.0.0.1:{free_port()}").ask("query", query="up")
