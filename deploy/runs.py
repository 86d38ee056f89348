"""Start a deployment's runs and follow each to its end, over deaths of the processes that carry it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from fedcaptor.common.errors import FedcaptorError, StateError
from fedcaptor.common.flower import FAILED, POSTPONED
from fedcaptor.deploy.enrolment import tell_superlink
from fedcaptor.deploy.folder import Deployment
from fedcaptor.deploy.superlink import FlowerRun, SuperLink, SuperLinkAwayError, connected
from fedcaptor.server import snapshot

T = TypeVar("T")

_LOOK_SECONDS = 1.0
_AWAY_SECONDS = 120.0
_RETRY_SECONDS = 3600.0
_DAY_SECONDS = 86_400.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ENDS = {FAILED: "failed", POSTPONED: "is postponed"}
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_WORDS = re.compile(r"^(?:INFO|WARNING|ERROR) *:\s*+(?!DEPRECATED|Start `flwr|Exit Code)(.+)$")


def run(deployment: Deployment, name: str, say: Callable[[str], object], rounds: int = 0) -> None:
    """Start the run `name`, or go on with it, and wait for its end.

    `rounds`: at most so many now; 0 = all that are left, or one of a run that has no last one.

    A run whose process was killed is started again and goes on where it was, `deployment.restarts` times. Raises
    StateError where the run failed, cannot go on yet, or could not be started; what it had finished is kept.
    """
    if not _NAME.fullmatch(name):
        raise StateError(f"the run's name is {name[:80]!r}, must be letters, digits, '.', '_' or '-': choose another")
    settings = deployment.settings
    for attempt in range(settings.restarts + 1):
        failures: list[str] = []

        def hear(text: str, failures: list[str] = failures) -> None:
            say(text)
            for begin, end in _ENDS.items():
                if text.startswith(begin):
                    failures.append(f"{end}: {text.removeprefix(begin)}")

        with connected(deployment) as superlink:
            _patiently(lambda: tell_superlink(deployment))
            run_id = _patiently(lambda: _begun(superlink, _run_config(deployment, name, rounds), say))
            ended = _follow(superlink, run_id, hear)
        if ended is not None and ended.completed:
            return
        if failures:
            raise StateError(f"run {name} {failures[-1]}")
        if ended is not None and ended.stopped:
            raise StateError(f"run {name} was stopped: the same command goes on with it")
        why = ended.details.strip() if ended is not None else "the SuperLink forgot it"
        say(f"run {name} lost its process ({why}): starting it again, {settings.restarts - attempt} times at most")
        time.sleep(min(30.0, 2.0**attempt))
    raise StateError(f"run {name} lost its process {settings.restarts + 1} times: see the logs, then run it again")


def _run_config(deployment: Deployment, name: str, rounds: int) -> dict[str, str | int]:
    return {
        "config": str(deployment.description),
        "name": name,
        "folder": str(deployment.runs / name),
        "weights": str(deployment.weights),
        "nodes": deployment.settings.phones,
        "rounds": rounds or int(deployment.config.run.rounds == 0),
    }


def _begun(superlink: SuperLink, config: dict[str, str | int], say: Callable[[str], object]) -> int:
    """Start a run, or find the one of its name that is under way; return its number."""
    if (under_way := superlink.unfinished(str(config["name"]))) is not None:
        say(f"run {config['name']} is under way: following it")
        return under_way.run_id
    return superlink.start(config)


def _patiently(call: Callable[[], T]) -> T:
    """Call again while the SuperLink is away: its supervisor starts it again."""
    end = time.monotonic() + _AWAY_SECONDS
    while True:
        try:
            return call()
        except SuperLinkAwayError:
            if time.monotonic() > end:
                raise
            time.sleep(_LOOK_SECONDS)


def _follow(superlink: SuperLink, run_id: int, say: Callable[[str], object]) -> FlowerRun | None:
    """Tell what a run logs until it ends; return how, None where the SuperLink has forgotten it."""
    after = 0.0
    while True:
        with suppress(SuperLinkAwayError):
            for text, latest in superlink.log(run_id, after):
                after = max(after, latest)
                for line in _COLOUR.sub("", text).splitlines():
                    if found := _WORDS.match(line):
                        say(found[1])
        found_run = _patiently(lambda: superlink.run(run_id))
        if found_run is None or found_run.ended:
            return found_run
        time.sleep(_LOOK_SECONDS)


def run_on_schedule(
    deployment: Deployment,
    every_days: float,
    say: Callable[[str], object],
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> None:
    """Start a round when so many days have passed since the last one ended, for ever.

    A run with a last round is run whole, and then the next one. What cannot begin, as too few phones are there or the
    budget is spent, is tried again every hour.
    """
    while True:
        name = next_name(deployment)
        ends = [found.heartbeat for path in deployment.runs.glob("*") if (found := last_snapshot(path)) is not None]
        last = last_snapshot(deployment.runs / name)
        begun = last is not None and last.status in ("running", "stopped", "failed", "postponed")
        due = clock() if begun or not ends else max(ends) + every_days * _DAY_SECONDS
        if due > clock():
            say(f"the next round is due in {(due - clock()) / _DAY_SECONDS:.2f} days")
            sleep(due - clock())
        try:
            run(deployment, name, say, rounds=int(deployment.config.run.rounds == 0))
        except FedcaptorError as error:
            say(f"{error}; trying again in {_RETRY_SECONDS / 3600:.0f} hour")
            sleep(_RETRY_SECONDS)


def last_snapshot(folder: Path) -> snapshot.Snapshot | None:
    """Return a run's newest figures, None where there are none that can be read."""
    try:
        return snapshot.read(folder / snapshot.FILE)
    except StateError:
        return None


def next_name(deployment: Deployment) -> str:
    """Return the name of the newest run that has not ended, or else the next: run-0001, run-0002, …"""
    numbers = sorted(
        (int(path.name.removeprefix("run-")), path)
        for path in deployment.runs.glob("run-*")
        if path.name.removeprefix("run-").isdecimal()
    )
    if not numbers:
        return "run-0001"
    number, path = numbers[-1]
    last = last_snapshot(path)
    return f"run-{number + (last is not None and last.status == 'ended'):04d}"
