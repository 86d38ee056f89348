"""What `fedcaptor devices` does to a device: here a folder of this machine and its shell are one."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedcaptor.deploy.android import plans, transfer
from fedcaptor.deploy.android.adb import Attached, choose
from fedcaptor.deploy.android.bundle import LAYERS, Bundle, Layer, alignment, pack
from fedcaptor.deploy.android.device import DeviceError
from fedcaptor.deploy.android.install import Installation
from fedcaptor.deploy.android.probe import findings, probe

SCRIPTS = Path(transfer.__file__).parent / "scripts"


@dataclass
class FolderDevice:
    """A device whose storage is this machine's. `left`: operations until the cable is cut, a file in its middle."""

    serial: str = "folder"
    left: int = 1 << 30
    sent: int = 0
    ports: set[int] = field(default_factory=set)

    def run(self, command: str, seconds: float = 60.0) -> str:
        self._step()
        done = subprocess.run(
            ["sh", "-c", f"umask 077; {command}"], capture_output=True, text=True, timeout=seconds, check=False
        )
        if done.returncode:
            raise DeviceError(f"{self.serial}: {done.stderr}")
        return done.stdout

    def send(self, content: bytes, path: str) -> None:
        whole = self.left > 1
        Path(path).write_bytes(content if whole else content[: len(content) // 2])
        self._step()
        self.sent += len(content)

    def reverse(self, port: int) -> None:
        self.ports.add(port)

    def reversed(self) -> set[int]:
        return self.ports

    def unreverse(self, port: int) -> None:
        self.ports.discard(port)

    def _step(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise DeviceError(f"{self.serial} is gone")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PIECE", 1000)


def archive_of(folder: Path, size: int = 3500) -> tuple[Path, str]:
    file = folder / "archive"
    file.write_bytes(bytes(number % 251 for number in range(size)))
    return file, hashlib.sha256(file.read_bytes()).hexdigest()


def bundle_of(folder: Path, client: str = "echo $$ > pid; exec sleep 60") -> Bundle:
    """A bundle whose Python is a line of shell in place of the client."""
    layers = []
    for name in LAYERS:
        tree = folder / f"{name}.tree"
        (tree / "bin").mkdir(parents=True)
        if name == "runtime":
            (tree / "bin" / "python").write_text(f"#!/bin/sh\n{client}\n")
            (tree / "bin" / "python").chmod(0o700)
        if name == "program":
            (tree / "scripts").mkdir()
            for script in SCRIPTS.glob("*.sh"):
                (tree / "scripts" / script.name).write_bytes(script.read_bytes())
        packed = folder / f"{name}.tar"
        pack(tree, packed)
        digest = hashlib.sha256(packed.read_bytes()).hexdigest()
        layers.append(Layer(name, digest, packed.stat().st_size, []))
        packed.rename(folder / f"{layers[-1].folder}.tar")
    return Bundle(folder, tuple(layers))


def test_a_cut_file_goes_on_where_it_was(tmp_path: Path) -> None:
    file, digest = archive_of(tmp_path)
    part = tmp_path / "device" / "part"
    device = FolderDevice(left=6)  # one to look, then two for each piece
    with pytest.raises(DeviceError, match="gone"):
        transfer.send_archive(device, file, digest, str(part))
    assert part.stat().st_size == 2000
    device.left, told = 1 << 30, []
    assert transfer.send_archive(device, file, digest, str(part), lambda *now: told.append(now)) == 1500
    assert told == [(3000, 3500), (3500, 3500)]
    assert part.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("left", [b"of something else", bytes(9000)])
def test_what_is_no_part_of_the_file_is_sent_again(left: bytes, tmp_path: Path) -> None:
    file, digest = archive_of(tmp_path)
    part = tmp_path / "part"
    part.write_bytes(left)
    transfer.send_archive(FolderDevice(), file, digest, str(part))
    assert part.read_bytes() == file.read_bytes()


def test_a_push_that_is_cut_again_and_again_installs_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PIECE", 1 << 16)
    monkeypatch.setattr(Installation, "check", lambda self, bundle: ({}, []))
    bundle, home = bundle_of(tmp_path), tmp_path / "home"
    device = FolderDevice()
    installation = Installation(device, str(home))
    cuts = 0
    while not (home / "fedcaptor").exists():
        device.left = 8
        try:
            installation.push(bundle, print)
        except DeviceError:
            cuts += 1
        whole = {path.name for path in home.glob("layers/*") if path.suffix != ".new"}
        assert whole <= {layer.folder for layer in bundle.layers}
    assert cuts >= 3
    device.left = 1 << 30
    assert installation.push(bundle, print) == 0
    assert installation.is_current(bundle)
    assert {path.name for path in home.glob("layers/*")} == {layer.folder for layer in bundle.layers}
    for layer in bundle.layers:
        with tarfile.open(bundle.archive(layer)) as packed:
            for entry in packed.getmembers():
                there = home / "layers" / layer.folder / entry.name
                assert there.stat().st_mode & 0o777 == entry.mode
    assert not [path for path in home.rglob("*") if path.stat().st_mode & 0o077]


def test_images_are_brought_once(tmp_path: Path) -> None:
    own = tmp_path / "home" / "phone" / "images"
    own.mkdir(parents=True)
    installation = Installation(FolderDevice(), str(tmp_path / "home"))
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").write_bytes(name.encode())
        installation.bring_images(tmp_path / name)
    assert [(path.name, path.read_bytes()) for path in own.iterdir()] == [("first.png", b"first")]


@pytest.mark.slow
def test_the_service_starts_once_goes_on_after_an_update_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PIECE", 1 << 16)
    monkeypatch.setattr(Installation, "check", lambda self, bundle: ({}, []))
    device, bundle = FolderDevice(), bundle_of(tmp_path / "bundle")
    installation = Installation(device, str(tmp_path / "home"))
    with pytest.raises(DeviceError, match="nothing is installed"):
        plans.of_update(installation, bundle)
    assert plans.of_push(installation, bundle)[-2:] == ["send program, 0 MiB", "put the new client to use"]
    assert (plans.of_stop(installation), plans.of_remove(installation, None)) == ([], [])
    assert not (tmp_path / "home").exists()
    installation.push(bundle, print)
    assert plans.of_push(installation, bundle) == []
    assert plans.of_start(installation, 8443) == ["lead its port 8443 here", "start the client"]
    with pytest.raises(DeviceError, match=r"no phone\.toml"):
        installation.start(8443)
    (tmp_path / "home" / "phone" / "phone.toml").touch()
    try:
        assert installation.start(8443).startswith("started as ")
        running = installation.status()
        assert running["ports"] == [8443]
        assert installation.start(8443) == f"runs already as {running['running']}"
        installation.push(bundle, print)
        assert installation.status()["running"] == running["running"]
        newer = bundle_of(tmp_path / "newer", "echo $$ > pid; exec sleep 61")
        stop = f"stop process {running['running']}"
        assert plans.of_update(installation, newer) == ["send runtime, 0 MiB", f"{stop} and start the new client"]
        assert plans.of_remove(installation, None) == [stop, f"delete {installation.home}"]
        assert plans.of_start(installation, 8443) == []
        assert installation.status() == running
        device.left = 13  # until the client is stopped, and before it is started anew
        with pytest.raises(DeviceError, match="gone"):
            installation.push(newer, print)
        device.left = 1 << 30
        assert installation.status()["running"] is None
        assert installation.update(newer, print) == 0
        assert installation.is_current(newer)
        assert installation.status()["running"] not in (None, running["running"])
    finally:
        device.left = 1 << 30
        assert installation.stop() == "stopped"
    assert installation.status()["running"] is None
    client = (tmp_path / "home" / "phone" / "pid").read_text().strip()
    assert not Path(f"/proc/{client}").exists()
    installation.remove()
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("battery", "wanted", "refusal"),
    [
        ({}, "charging level=30 temperature=42", ""),
        ({"status": "Discharging"}, "level=30", ""),
        ({"status": "Discharging"}, "charging", "battery is Discharging, not charging"),
        ({"capacity": "29"}, "level=30", "battery is at 29 %, below 30 %"),
        ({"temp": "421"}, "temperature=42", "battery has 42 °C, above 42 °C"),
        ({"temp": ""}, "temperature=42", "the battery's temperature cannot be read"),
        ({"type": "Mains"}, "level=30", "the battery's level cannot be read"),
        ({}, "moon=full", "no condition: moon=full"),
    ],
)
def test_the_condition_of_a_battery(battery: dict[str, str], wanted: str, refusal: str, tmp_path: Path) -> None:
    supply = tmp_path / "class" / "power_supply" / "battery"
    supply.mkdir(parents=True)
    held = {"type": "Battery", "status": "Charging", "capacity": "80", "temp": "285"} | battery
    for name, value in held.items():
        (supply / name).write_text(f"{value}\n")
    command = ["sh", str(SCRIPTS / "condition.sh"), *wanted.split()]
    done = subprocess.run(command, env={"FEDCAPTOR_SYS": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (int(bool(refusal)), refusal)


def test_dumpsys_tells_of_a_battery_that_sysfs_hides(tmp_path: Path) -> None:
    program = tmp_path / "dumpsys"
    program.write_text("#!/bin/sh\nprintf 'Current state:\\n  status: 3\\n  level: 55\\n  temperature: 301\\n'\n")
    program.chmod(0o700)
    environment = {"FEDCAPTOR_SYS": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    for wanted, code in (("level=55", 0), ("level=56", 1), ("temperature=31", 0), ("charging", 1)):
        command = ["sh", str(SCRIPTS / "condition.sh"), wanted]
        assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == code, wanted


def test_a_probe_is_judged(tmp_path: Path) -> None:
    told = probe(FolderDevice(), str(tmp_path / "home"))
    assert int(told["free_kib"]) > 0
    good = {**told, "architecture": "aarch64", "android": "14", "page": "16384", "execute": "yes", "setsid": "x"}
    good |= {"sha256sum": "x", "/bin/sh": "x", "clock": "1000"}

    def errors(**changed: str) -> list[str]:
        found = findings({**good, **changed}, needed=1 << 20, now=1000.0)
        assert all(one.remedy for one in found if one.level != "ok")
        return [one.check for one in found if one.level == "error"]

    assert errors() == []
    assert errors(architecture="armv7l") == ["architecture"]
    assert errors(android="9") == ["Android"]
    assert errors(free_kib="900") == ["space"]
    assert errors(page="65536") == ["page size"]
    assert errors(execute="") == ["execution"]
    assert errors(clock="90000") == ["clock"]


def test_the_devices_that_are_meant() -> None:
    one, other = Attached("A1", "device"), Attached("B2", "device")
    assert [device.serial for device in choose([one], [])] == ["A1"]
    assert [device.serial for device in choose([one, other], ["B2"])] == ["B2"]
    assert [device.serial for device in choose([one, other], [], every=True)] == ["A1", "B2"]
    for found, serials, said in (
        ([], [], "no device is attached"),
        ([one, other], [], r"2 devices are attached \(A1, B2\): choose by -s"),
        ([one], ["C3"], "C3 is not connected"),
        ([Attached("A1", "unauthorized")], [], "A1 is unauthorized: unlock it"),
        ([Attached("A1", "offline")], [], "A1 is offline: unplug it"),
    ):
        with pytest.raises(DeviceError, match=said):
            choose(found, serials)


def test_an_archive_depends_on_its_content_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "folder").mkdir(parents=True)
        (tmp_path / name / "folder" / "file").write_text("content")
        pack(tmp_path / name, tmp_path / f"{name}.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_the_alignment_of_a_program() -> None:
    assert alignment(Path(sys.executable).resolve().read_bytes()) in (1 << 12, 1 << 14, 1 << 16)
    assert alignment(b"#!/bin/sh\n") is None
