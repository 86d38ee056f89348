"""What is done with a device on a cable: install, enrol, start, look, stop, remove. Each step can be given again.

The installation is one folder, `HOME`, which needs neither root nor an app:

- `fedcaptor`: the launcher. It names the layers, and is replaced as one file: that is what installs them.
- `layers/`: a folder for each layer, by its digest.
- `phone/`: the phone's own: `node.key`, made there, `phone.toml`, and the client's storage.
- `incoming/`, `run/`, `tmp/`: archives under way; the service's log and process; temporary files.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from fedcaptor.common.errors import ConfigError
from fedcaptor.deploy import enrolment
from fedcaptor.deploy.android.bundle import Bundle, Layer, pack
from fedcaptor.deploy.android.device import Device, DeviceError
from fedcaptor.deploy.android.probe import findings, probe
from fedcaptor.deploy.android.transfer import replace_file, send_archive, unpack
from fedcaptor.deploy.certificates import names_of, read_certificate
from fedcaptor.deploy.check import Finding
from fedcaptor.deploy.folder import KEY, Deployment
from fedcaptor.deploy.phones import phone_files

HOME = "/data/local/tmp/fedcaptor"
CONDITION = "charging level=30 temperature=42"
"""When a phone takes part, where the deployment's `device.condition` says nothing: scripts/condition.sh."""
_LOOPBACK = "127.0.0.1"  # not `localhost`: Android has no file that glibc would look the name up in
_MARGIN = 64 << 20
_enrolling = Lock()

Say = Callable[[str], object]


@dataclass(frozen=True)
class Installation:
    """A device, and the folder on it that everything is in."""

    device: Device
    home: str = HOME

    def missing(self, bundle: Bundle) -> list[Layer]:
        """The layers that the device lacks."""
        held = set(self.device.run(f"ls '{self.home}/layers' 2>/dev/null || true").split())
        return [layer for layer in bundle.layers if layer.folder not in held]

    def is_current(self, bundle: Bundle) -> bool:
        """Tell whether the device has exactly this bundle."""
        return not self.missing(bundle) and self._launcher().encode() == bundle.launcher(self.home)

    def check(self, bundle: Bundle | None) -> tuple[dict[str, str], list[Finding]]:
        """Ask the device, and judge it; with a bundle also whether that fits on it."""
        told = probe(self.device, self.home)
        return told, findings(told, self._needed(self.missing(bundle)) if bundle else 0)

    def require_fit(self, bundle: Bundle) -> None:
        """Raise DeviceError where the device cannot take a bundle."""
        _, found = self.check(bundle)
        if errors := [f"{one.check}: {one.text}, {one.remedy}" for one in found if one.level == "error"]:
            raise DeviceError(f"{self.device.serial} cannot take the client: {'; '.join(errors)}")

    def require_installed(self) -> None:
        """Raise DeviceError where nothing is installed."""
        if not self._launcher():
            raise DeviceError(f"{self.device.serial}: nothing is installed: run `fedcaptor devices push`")

    def push(self, bundle: Bundle, say: Say) -> int:
        """Install a bundle and return the bytes that were sent: what is there already stays, older layers go.

        A client that runs is started anew with it, also by the next call where this one is cut in between.
        Raises DeviceError where the device cannot take it; then what it had still works.
        """
        self.require_fit(bundle)
        sent = 0
        self.device.run(f"mkdir -p '{self.home}' && chmod 700 '{self.home}'")
        missing = self.missing(bundle)
        self._sweep(f"{self.home}/incoming", {f"{layer.digest}.part" for layer in missing})
        for layer in missing:
            part = f"{self.home}/incoming/{layer.digest}.part"

            def progress(done: int, size: int, name: str = layer.name) -> None:
                say(f"{name}: {done >> 20} of {size >> 20} MiB")

            sent += send_archive(self.device, bundle.archive(layer), layer.digest, part, progress)
            say(f"{layer.name}: unpacking")
            unpack(self.device, part, f"{self.home}/layers/{layer.folder}")
        launcher = bundle.launcher(self.home)
        if (old := self._launcher().encode()) != launcher:
            if old:
                self.launch("service pause")
            replace_file(self.device, launcher, f"{self.home}/fedcaptor", "700")
        self.launch("service resume")
        self._sweep(f"{self.home}/layers", {layer.folder for layer in bundle.layers})
        return sent

    def enrol(self, deployment: Deployment, name: str = "", images: str = "") -> str:
        """Enrol the device's key, which it makes itself, bring its files, and return the phone's name.

        A key that is enrolled keeps its name. Raises ConfigError where the front's certificate is not for loopback.
        """
        if _LOOPBACK not in names_of(read_certificate(deployment.front_certificates[0])):
            raise ConfigError(
                f"the front's certificate is not for {_LOOPBACK}, where a cable leads: "
                "use a deployment with an authority of its own"
            )
        public = self.launch(f"phone key {KEY}").encode() + b"\n"
        with _enrolling:
            found = enrolment.name_of(deployment, public)
            if found is None:
                found = name or f"android-{hashlib.sha256(public).hexdigest()[:8]}"
                with tempfile.NamedTemporaryFile() as file:
                    Path(file.name).write_bytes(public)
                    enrolment.enrol(deployment, found, Path(file.name))
        address = f"{_LOOPBACK}:{deployment.settings.port}"
        condition = deployment.config.device.condition or f"sh {self.home}/fedcaptor condition {CONDITION}"
        changes: dict[str, object] = {"superlink": address, "catalogue": address, "condition": condition}
        if images:
            changes["images"] = images
        for file_name, content in phone_files(deployment, changes).items():
            replace_file(self.device, content, f"{self.home}/phone/{file_name}")
        self.device.run(f"cd '{self.home}/phone' && mkdir -p images && chmod 700 . && chmod 600 {KEY}")
        return found

    def bring_images(self, folder: Path) -> None:
        """Copy the files of a folder of this machine to the phone's images, unless it has any."""
        if self.has_images():
            return
        images, part = f"{self.home}/phone/images", f"{self.home}/incoming/images.part"
        with tempfile.NamedTemporaryFile() as file:
            archive = Path(file.name)
            pack(folder, archive)
            send_archive(self.device, archive, hashlib.sha256(archive.read_bytes()).hexdigest(), part)
        self.device.run(f"tar -xf '{part}' -C '{images}' && rm -f '{part}'", 600.0)

    def has_images(self) -> bool:
        """Tell whether the phone's own folder of images has any."""
        return bool(self.device.run(f"ls '{self.home}/phone/images' 2>/dev/null || true").strip())

    def start(self, port: int) -> str:
        """Lead `port` of the device to this machine and start the service, if it does not run; return what it says."""
        self.require_installed()
        self.device.reverse(port)
        return self.launch("service start")

    def stop(self) -> str:
        return self.launch("service stop") if self._launcher() else "is not installed"

    @property
    def running(self) -> int | None:
        """The service's process, None where it does not run or nothing is installed."""
        return self._service()[0] if self._launcher() else None

    def status(self, bundle: Bundle | None = None) -> dict[str, Any]:
        """Return what is installed and whether it runs. `current`: whether it is this bundle; None without one."""
        if not self._launcher():
            return {"serial": self.device.serial, "installed": False}
        running, restarts = self._service()
        return {
            "serial": self.device.serial,
            "installed": True,
            "current": None if bundle is None else self.is_current(bundle),
            "running": running,
            "restarts": restarts,
            "ports": sorted(self.device.reversed()),
            "mebibytes": int(self.device.run(f"du -sk '{self.home}'", 600.0).split()[0]) >> 10,
        }

    def logs(self, lines: int) -> str:
        """Return the newest lines of the service's log, which has the client's too."""
        return self.device.run(f"tail -n {lines} '{self.home}/run/service.log' 2>/dev/null || true")

    def update(self, bundle: Bundle, say: Say) -> int:
        """Push a bundle onto a device that has one; return the bytes that were sent."""
        self.require_installed()
        return self.push(bundle, say)

    def remove(self, deployment: Deployment | None = None) -> str | None:
        """Stop the service and delete the folder, the phone's key and storage included.

        With a deployment the phone is shut out of it too; returns its name there, None where it has none.
        """
        self.stop()
        name = None
        if deployment is not None:
            self.device.unreverse(deployment.settings.port)
            with _enrolling:
                if (name := self.name_in(deployment)) is not None:
                    enrolment.revoke(deployment, name)
        self.device.run(f"rm -rf '{self.home}'", 600.0)
        return name

    def name_in(self, deployment: Deployment) -> str | None:
        """Return the name that the device's key is enrolled by; None where it is not, or there is no key."""
        public = self.device.run(f"cat '{self.home}/phone/{KEY}.pub' 2>/dev/null || true").encode()
        return enrolment.name_of(deployment, public) if public else None

    def launch(self, arguments: str, seconds: float = 600.0) -> str:
        """Run the installation's `fedcaptor` on the device and return what it says."""
        return self.device.run(f"sh '{self.home}/fedcaptor' {arguments}", seconds).strip()

    def _service(self) -> tuple[int | None, int]:
        """Return the process of an installed service, None where it does not run, and how often the client ended."""
        told = dict(line.split("=", 1) for line in self.launch("service status").splitlines() if "=" in line)
        return int(told["running"]) if told.get("running") else None, int(told.get("restarts", 0))

    def _launcher(self) -> str:
        return self.device.run(f"cat '{self.home}/fedcaptor' 2>/dev/null || true")

    def _needed(self, missing: Sequence[Layer]) -> int:
        """Bytes that the layers take, with the largest archive beside its folder, less what has come of them."""
        if not missing:
            return 0
        parts = self.device.run(f"du -sk '{self.home}/incoming' 2>/dev/null || echo 0").split()
        there = int(parts[0]) << 10
        return max(0, sum(layer.size for layer in missing) + max(layer.size for layer in missing) - there) + _MARGIN

    def _sweep(self, folder: str, keep: set[str]) -> None:
        """Delete what a folder holds beside `keep`: older layers, and what a cut has left of them."""
        held = self.device.run(f"ls '{folder}' 2>/dev/null || true").split()
        if old := [name for name in held if name not in keep]:
            self.device.run("rm -rf " + " ".join(f"'{folder}/{name}'" for name in old), 600.0)
