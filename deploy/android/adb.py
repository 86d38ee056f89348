"""Devices on adb, through adbutils, with errors that say what to do."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import adbutils

from fedcaptor.deploy.android.device import Device, DeviceError

_REMEDIES = {
    "unauthorized": "unlock it and allow debugging by this computer",
    "authorizing": "unlock it and allow debugging by this computer",
    "offline": "unplug it and plug it in again, or restart it",
    "no permissions": "this user may not open it: see udev rules of adb",
}
_PACKET = 1 << 16
_GONE = "is not connected: plug it in and give the command again; it goes on where it was"


@dataclass(frozen=True)
class Attached:
    """A device that adb lists. `state` is `device` where it can be used."""

    serial: str
    state: str

    @property
    def remedy(self) -> str:
        """What to do about its state; empty where it can be used."""
        known = (remedy for state, remedy in _REMEDIES.items() if self.state.startswith(state))
        return "" if self.state == "device" else next(known, "restart it normally")


def attached() -> list[Attached]:
    """List what adb sees. Raises DeviceError where adb does not run."""
    try:
        return sorted((Attached(one.serial, one.state) for one in adbutils.AdbClient().list()), key=lambda d: d.serial)
    except (adbutils.AdbError, OSError) as error:
        raise DeviceError(f"adb does not answer ({error}): run `adb start-server` and look at what it says") from error


def choose(found: Sequence[Attached], serials: Sequence[str], every: bool = False) -> list[Device]:
    """Return the devices that are meant: those of `serials`, all with `every`, else the only one.

    Raises DeviceError where this names none, or one that cannot be used.
    """
    by_serial = {one.serial: one for one in found}
    if not found:
        raise DeviceError("no device is attached: plug one in and switch USB debugging on, in its developer options")
    if missing := [serial for serial in serials if serial not in by_serial]:
        raise DeviceError(f"{missing[0]} {_GONE}; attached: {', '.join(by_serial)}")
    if not serials and not every and len(found) > 1:
        raise DeviceError(f"{len(found)} devices are attached ({', '.join(by_serial)}): choose by -s, or take --all")
    chosen = [by_serial[serial] for serial in dict.fromkeys(serials)] or list(found)
    for one in chosen:
        if one.remedy:
            raise DeviceError(f"{one.serial} is {one.state}: {one.remedy}")
    return [AdbDevice(one.serial) for one in chosen]


class _Packets(io.BytesIO):
    """Content that is read in packets as large as adb takes: adbutils asks for a sixteenth of that."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(_PACKET)


@dataclass(frozen=True)
class AdbDevice:
    """A device that adb leads to."""

    serial: str
    _device: adbutils.AdbDevice = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_device", adbutils.AdbClient().device(self.serial))

    def run(self, command: str, seconds: float = 60.0) -> str:
        with self._explained():
            done = self._device.shell2(f"umask 077; {command}", timeout=seconds, v2=True)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
            if "No space left" in done.stderr:
                raise DeviceError(self._full())
            raise DeviceError(f"{self.serial}: {said[-1][:300]}")
        return str(done.stdout)

    def send(self, content: bytes, path: str) -> None:
        with self._explained():
            try:
                self._device.sync.push(_Packets(content), path, mode=0o600, check=True)
            except (adbutils.AdbError, OSError):  # adbutils does not pass the device's reason on
                if self._free(path.rpartition("/")[0]) < len(content):
                    raise DeviceError(self._full()) from None
                raise

    def reverse(self, port: int) -> None:
        with self._explained():
            self._device.reverse(f"tcp:{port}", f"tcp:{port}")

    def reversed(self) -> set[int]:
        with self._explained():
            held = [(item.remote, item.local) for item in self._device.reverse_list()]
        return {int(here.removeprefix("tcp:")) for here, there in held if here == there and here.startswith("tcp:")}

    def unreverse(self, port: int) -> None:
        if port in self.reversed():
            with self._explained():
                self._device.reverse_remove(f"tcp:{port}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what adbutils raises when a device goes away into one line that says what the device's state is."""
        try:
            yield
        except adbutils.AdbTimeout as error:
            raise DeviceError(f"{self.serial} did not answer in time: give the command again") from error
        # A connection that ends in the middle of an answer is met as any of these.
        except (adbutils.AdbError, OSError, EOFError, struct.error, ValueError, IndexError) as error:
            found = next((one for one in attached() if one.serial == self.serial), None)
            if found is None:
                raise DeviceError(f"{self.serial} {_GONE}") from error
            if found.remedy:
                raise DeviceError(f"{self.serial} is {found.state}: {found.remedy}") from error
            said = str(error)[:200] or type(error).__name__
            raise DeviceError(f"{self.serial} refused ({said}): give the command again") from error

    def _free(self, folder: str) -> int:
        """Bytes that are free where a folder is."""
        return int(self.run(f"df -k '{folder}'").splitlines()[-1].split()[3]) << 10

    def _full(self) -> str:
        return f"{self.serial} is full: make room on it and give the command again; it goes on where it was"
