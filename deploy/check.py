"""Look for what is wrong with a deployment; each finding says what to do about it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from fedcaptor.client.folder import DATABASE
from fedcaptor.client.folder import status as ledger_of
from fedcaptor.common.config import load_config
from fedcaptor.common.errors import FedcaptorError
from fedcaptor.common.weights_file import digest_of_file
from fedcaptor.deploy.certificates import days_left, names_of, read_certificate
from fedcaptor.deploy.environment import read_environment
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.processes import status, strangers_ports
from fedcaptor.deploy.superlink import SuperLinkError, connected, der_of
from fedcaptor.server.database import STATE, require_answer, url_of

Level = Literal["ok", "warning", "error"]
_WARN_DAYS = 30.0
_MIN_FREE = 1 << 30
_CLOCK_SECONDS = 60.0
_PACKAGES = ("fedcaptor", "flwr", "torch", "onnxruntime", "supervisor", "sqlalchemy", "cryptography")


@dataclass(frozen=True)
class Finding:
    """What one check found; `remedy` is empty where nothing is wrong."""

    check: str
    level: Level
    text: str
    remedy: str = ""


def check(deployment: Deployment) -> list[Finding]:
    """Check certificates, keys, weights, services, ports, phones, databases, disk and versions."""
    found: list[Finding] = []
    for looked in (_clock, _certificates, _keys, _weights, _services, _phones, _database, _disk, _ledgers):
        try:
            found += looked(deployment)
        except (FedcaptorError, OSError) as error:
            found.append(Finding(looked.__name__.lstrip("_"), "error", str(error), "see the text"))
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return [*found, Finding("versions", "ok", versions)]


def _clock(deployment: Deployment) -> Iterator[Finding]:
    """Look for traces of a later time: a clock that went back refuses phones, certificates and signed deliveries."""
    times = [read_certificate(deployment.certificate).not_valid_before_utc.timestamp()]
    for path in (*deployment.runs.rglob("*"), *deployment.logs.glob("*")):
        with suppress(FileNotFoundError):  # services write meanwhile
            times.append(path.stat().st_mtime)
    ahead = max(times) - time.time()
    if ahead > _CLOCK_SECONDS:
        text = f"the clock is {ahead / 60:.0f} minutes behind what the deployment wrote before"
        yield Finding("clock", "error", text, "set it by NTP: phones are refused when it is off by five minutes")
    else:
        yield Finding("clock", "ok", f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC")


def _certificates(deployment: Deployment) -> Iterator[Finding]:
    own = deployment.front_certificate.is_file()
    host = deployment.settings.host
    used = {"authority": deployment.authority, "services": deployment.certificate}
    if own:
        used["front"] = deployment.front_certificate
    for name, path in used.items():
        certificate = read_certificate(path)
        left = days_left(certificate)
        if left < _WARN_DAYS:
            level: Level = "error" if left <= 0 else "warning"
            remedy = (
                f"replace {path} and its key"
                if name == "front"
                else f"`fedcaptor deploy renew {deployment.root}`, then `deploy up`"
            )
            yield Finding("certificates", level, f"{path.name} is valid for {left:.0f} days", remedy)
        elif name != "authority" and host not in names_of(certificate):
            names = ", ".join(sorted(names_of(certificate)))
            remedy = f"`fedcaptor deploy renew {deployment.root}`, or correct deployment.host"
            yield Finding("certificates", "error", f"{path.name} is for {names}, not for {host}", remedy)
        else:
            yield Finding("certificates", "ok", f"{path.name} is valid for {left:.0f} days")


def _keys(deployment: Deployment) -> Iterator[Finding]:
    private = [*deployment.secrets.glob("*"), *deployment.phones.glob("*/node.key")]
    loose = [path for path in private if stat.S_IMODE(path.stat().st_mode) & 0o077]
    for path in loose:
        yield Finding("keys", "error", f"{path} can be read by others", f"chmod 600 {path}")
    if stat.S_IMODE(deployment.secrets.stat().st_mode) & 0o077:
        yield Finding("keys", "error", f"{deployment.secrets} can be read by others", f"chmod 700 {deployment.secrets}")
    elif not loose:
        yield Finding("keys", "ok", f"{len(private)} private files are readable by their owner alone")
    if os.geteuid() == 0:
        remedy = "give the folder to a user of its own and start it as that user, as the systemd units do"
        yield Finding("keys", "warning", "the services run as root", remedy)


def _weights(deployment: Deployment) -> Iterator[Finding]:
    channels = deployment.config.device.input_shape[0]
    digest = digest_of_file(deployment.weights, channels)
    other = []
    for folder in deployment.phone_folders():
        pinned = load_config(folder / "phone.toml").device.weights_digest
        fetched = folder / deployment.weights.name
        if pinned != digest or (fetched.is_file() and digest_of_file(fetched, channels) != digest):
            other.append(folder.name)
    if other:
        names = ", ".join(other[:5]) + (", …" if len(other) > 5 else "")
        remedy = f"`fedcaptor deploy phones {deployment.root}`, and copy the folders again"
        yield Finding("weights", "error", f"{len(other)} phones have other weights than the server: {names}", remedy)
    else:
        yield Finding(
            "weights", "ok", f"digest {digest[:12]} on the server and on {len(deployment.phone_folders())} phones"
        )


def _services(deployment: Deployment) -> Iterator[Finding]:
    running = status(deployment)
    if all(service.state in ("down", "missing") for service in running):
        for name, port in strangers_ports(deployment).items():
            remedy = f"stop what listens there, or change deployment.{name}"
            yield Finding("ports", "error", f"{port} is taken by another process", remedy)
        yield Finding("services", "warning", "nothing runs", f"`fedcaptor deploy up {deployment.root}`")
        return
    for service in running:
        if service.state == "missing":
            yield Finding("services", "warning", f"{service.name} is not installed", service.note)
        elif service.state != "running":
            remedy = f"`fedcaptor deploy logs {deployment.root} {service.name}`, then `deploy up`"
            yield Finding("services", "error", f"{service.name} is {service.state} {service.note}".strip(), remedy)
    count = sum(service.state == "running" for service in running)
    yield Finding("services", "ok", f"{count} of {len(running)} run")


def _phones(deployment: Deployment) -> Iterator[Finding]:
    enrolled = {der_of(key, name) for name, key in deployment.enrolled_keys().items()}
    try:
        with connected(deployment) as superlink:
            nodes = superlink.nodes()
    except SuperLinkError:
        yield Finding("phones", "ok", f"{len(enrolled)} enrolled; the SuperLink is not running")
        return
    if {node.public_key for node in nodes} != enrolled:
        text = f"{len(enrolled)} enrolled, the SuperLink knows {len(nodes)}"
        remedy = f"`fedcaptor deploy up {deployment.root}`, or `deploy run`, which enrols them before its round"
        yield Finding("phones", "warning", text, remedy)
    online, needed = sum(node.status == "online" for node in nodes), deployment.settings.phones
    if online < needed:
        remedy = "wait for them, look at `fedcaptor phone log` on one, or lower deployment.phones"
        yield Finding("phones", "warning", f"{online} of {len(enrolled)} online, a round needs {needed}", remedy)
    else:
        yield Finding("phones", "ok", f"{online} of {len(enrolled)} online")


def _database(deployment: Deployment) -> Iterator[Finding]:
    url = read_environment(deployment.environment_file).get(STATE, "")
    if url:
        require_answer(url_of(url, "check"))
        yield Finding("database", "ok", "the state database answers")
    for path in [deployment.superlink_database, *([] if url else deployment.runs.glob("*/state.db"))]:
        if path.is_file():
            yield _sound(path)


def _sound(path: Path) -> Finding:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        verdict = str(error)
    if verdict == "ok":
        return Finding("database", "ok", f"{path.name} is sound")
    return Finding("database", "error", f"{path} is damaged: {verdict}", "restore it by `fedcaptor deploy restore`")


def _disk(deployment: Deployment) -> Iterator[Finding]:
    free = shutil.disk_usage(deployment.root).free
    if free < _MIN_FREE:
        text = f"{free / 2**20:.0f} MiB are free, less than {_MIN_FREE / 2**20:.0f}"
        yield Finding("disk", "warning", text, "make room: a full disk stops runs")
    else:
        yield Finding("disk", "ok", f"{free / 2**30:.0f} GiB are free")


def _ledgers(deployment: Deployment) -> Iterator[Finding]:
    """Look at the budgets of phones on this machine, where they run."""
    folders = deployment.phone_folders() if deployment.settings.local_phones else []
    own = [folder / load_config(folder / "phone.toml").device.folder for folder in folders]
    found = [ledger_of(path, deployment.config.privacy) for path in own if (path / DATABASE).is_file()]
    if not found:
        return
    off, spent = sum(not phone.answering for phone in found), max(phone.epsilon for phone in found)
    text = f"{len(found)} phones here, {off} switched off, at most ε = {spent:.3g} of {found[0].budget:.3g} spent"
    if spent >= found[0].budget:
        yield Finding("ledgers", "warning", text, "phones decline until the period is over")
    else:
        yield Finding("ledgers", "ok", text)
