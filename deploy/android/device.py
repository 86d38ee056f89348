"""What is asked of a device on a cable, whoever carries it: run a command, send a file whole, read one."""

from __future__ import annotations

from typing import Protocol

from fedcaptor.common.errors import FedcaptorError


class DeviceError(FedcaptorError):
    """A device cannot be used; the message names it and the remedy. What was done stays, and the next call goes on."""


class Device(Protocol):
    """A device that is attached. Every method raises DeviceError where it is gone, full, or refuses."""

    @property
    def serial(self) -> str:
        """Its name on the cable, for messages alone: a phone's identity is its key."""

    def run(self, command: str, seconds: float = 60.0) -> str:
        """Run a shell command and return its output. What it makes is for the device's user alone; an exit status other
        than 0 is an error.
        """

    def send(self, content: bytes, path: str) -> None:
        """Write a file, of mode 0600. When the cable is cut, what lies there may be a part of it."""

    def reverse(self, port: int) -> None:
        """Let `port` of the device's loopback lead to the same port of this machine's."""

    def reversed(self) -> set[int]:
        """The ports that lead here."""

    def unreverse(self, port: int) -> None:
        """End what `reverse` made, if it is there."""
