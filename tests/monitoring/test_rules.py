"""Rules and alerts: Prometheus' own checks, a case that fires and one that does not for each alert, and its runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.test_pages import anchors
from tests.programs import program

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "monitoring"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "rules" / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
CASES = [
    case for file in sorted((FOLDER / "tests").glob("*.yml")) for case in yaml.safe_load(file.read_text())["tests"]
]
SEVERITIES = {"critical", "warning", "info"}


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_are_valid_and_do_what_their_tests_say() -> None:
    promtool = program("promtool")
    run(promtool, "check", "rules", *(FOLDER / "rules").glob("*.yml"))
    run(promtool, "test", "rules", *(FOLDER / "tests").glob("*.yml"))


def test_the_configurations_are_valid() -> None:
    run(program("promtool"), "check", "config", FOLDER / "prometheus.yml")
    run(program("amtool"), "check-config", FOLDER / "alertmanager.yml")


def expectations(case: dict[str, Any]) -> tuple[set[str], bool]:
    """The alerts that a case expects to fire at some time, and whether it expects none at another."""
    fired, silent = set(), False
    for test in case.get("promql_expr_test", []):
        if test["expr"].startswith("ALERTS"):
            samples = test["exp_samples"]
            silent |= not samples
            fired |= {re.search(r'alertname="(\w+)"', sample["labels"])[1] for sample in samples}  # type: ignore[index]
    for test in case.get("alert_rule_test", []):
        fired |= {test["alertname"]} if test["exp_alerts"] else set()
        silent |= not test["exp_alerts"]
    return fired, silent


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_fires_in_a_test_and_is_silent_in_one(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert any(name in expectations(case)[0] for case in CASES)
    silent = [case for case in CASES if name in case["name"] and expectations(case)[1]]
    partly = [
        case for case in CASES if name in expectations(case)[0] and len({run_of(s) for s in case["input_series"]}) > 1
    ]
    assert silent or partly, "a test in which it does not fire"


def run_of(series: dict[str, str]) -> str:
    found = re.search(r'run="(\w+)"', series["series"])
    return found[1] if found else ""


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_has_a_runbook_and_words(alert: dict[str, Any]) -> None:
    page, anchor = alert["annotations"]["runbook_url"].split("#")
    assert anchor == alert["alert"].lower()
    text = (ROOT / page).read_text()
    assert anchor in anchors(text)
    section = re.split(r"^### ", text, flags=re.M)
    (body,) = [part for part in section if part.splitlines()[0] == alert["alert"]]
    assert len(body.split()) > 30, "what it means, how to look, what to do"
    assert alert["labels"]["severity"] in SEVERITIES
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}


def test_there_are_no_runbooks_of_alerts_that_are_gone() -> None:
    alerts = (ROOT / "docs" / "operate.md").read_text().partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^### (\w+)$", alerts, re.M)) == {alert["alert"] for alert in ALERTS}
