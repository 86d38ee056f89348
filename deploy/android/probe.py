"""What a device differs in from a computer with Linux, and what that means for the client."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedcaptor.deploy.android.bundle import PAGE
from fedcaptor.deploy.android.device import Device
from fedcaptor.deploy.check import Finding

_SCRIPT = Path(__file__).parent / "scripts" / "probe.sh"
_CLOCK_SECONDS = 3600
_OLDEST = 10
"""The oldest Android: earlier ones have no /bin/sh, which runs a phone's condition."""


def probe(device: Device, home: str) -> dict[str, str]:
    """Ask a device, on which nothing needs to be installed, and return its answers by name; empty ones are unknown."""
    told = device.run(f"home='{home}'\n{_SCRIPT.read_text()}")
    return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)


def findings(told: Mapping[str, str], needed: int = 0, now: float | None = None) -> list[Finding]:
    """Judge what a device told. `needed`: bytes that an installation takes."""
    return [*_must(told, needed, time.time() if now is None else now), *_notes(told)]


def _must(told: Mapping[str, str], needed: int, now: float) -> Iterator[Finding]:
    """Without these the client cannot run."""

    def finding(right: bool, check: str, text: str, remedy: str) -> Finding:
        return Finding(check, "ok" if right else "error", text, "" if right else remedy)

    architecture = told.get("architecture") or "unknown"
    right = architecture in ("aarch64", "arm64")
    yield finding(right, "architecture", architecture, "only aarch64 has wheels: use another device")
    version = told.get("android", "")
    first = version.partition(".")[0]
    if first.isdecimal():
        yield finding(int(first) >= _OLDEST, "Android", version, f"must be {_OLDEST} or newer")
    free = _number(told, "free_kib") << 10
    text = f"{free >> 20} MiB free, {needed >> 20} needed"
    yield finding(free >= needed, "space", text, f"make {max(0, needed - free) >> 20} MiB of room")
    page = _number(told, "page")
    yield finding(page <= PAGE, "page size", f"{page or 'unknown'}", f"libraries are for pages of {PAGE} at most")
    runs = told.get("execute") == "yes"
    text = "files run from the folder" if runs else "no file runs from the folder"
    yield finding(runs, "execution", text, "SELinux or a mount without exec forbids it: use another device")
    for program in ("/bin/sh", "setsid", "sha256sum"):
        there = bool(told.get(program))
        yield finding(there, program, "there" if there else "missing", "this Android is too old: update it")
    late = _number(told, "clock") - now
    right = abs(late) < _CLOCK_SECONDS
    yield finding(right, "clock", f"{late:+.0f} s from this machine's", "set the time, or TLS and periods are wrong")


def _notes(told: Mapping[str, str]) -> Iterator[Finding]:
    """These are worth knowing."""
    cores, memory = told.get("cores") or "unknown", _number(told, "memory_kib") >> 10
    yield Finding("cores and memory", "ok", f"{cores}, {memory:,} MiB", "")
    yield Finding("SELinux", "ok", told.get("selinux") or "unknown", "")
    if _number(told, "seccomp"):
        yield Finding("seccomp", "warning", f"mode {told['seccomp']}", "system calls may be refused: see the log")
    else:
        yield Finding("seccomp", "ok", "no filter", "")
    if not told.get("resolver"):
        remedy = "a cable leads to an address; elsewhere give the deployment an IP address as host"
        yield Finding("names", "warning", "no /etc/resolv.conf: host names are not found", remedy)
    if told.get("idle", "").startswith("IDLE"):
        yield Finding("doze", "warning", told["idle"], "it sleeps: plug the charger in, or wake it")
    battery = told.get("battery", "")
    remedy = "" if battery else "conditions refuse, so the phone stays away: set device.condition of your own"
    yield Finding("battery", "ok" if battery else "warning", battery or "cannot be read", remedy)


def _number(told: Mapping[str, str], name: str) -> int:
    value = told.get(name, "")
    return int(value) if value.isdecimal() else 0
